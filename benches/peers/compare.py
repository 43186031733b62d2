"""Addenda beside Transformers and llama.cpp: the same GGUF, one run, one setting of threads.

    compare.py --bench target/release/addenda-bench --gguf MODEL.gguf --libs FOLDER

Each round measures all of them, one after the other, each in a process of its own, so that all meet
the same machine; medians of the rounds are compared. Peers come from PyPI into FOLDER (`--install`
puts them there; llama.cpp is compiled for minutes); one that is not there is left out, and the line
says why. Prints one line of JSON, rates in tokens a second, and writes it to `--out`.

Addenda decodes with each of its settings, and the fastest is compared. llama-cpp-python has no server
with slots, so many clients at once are compared with one client of Addenda itself only.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

PEERS = {
    "llamacpp": ["llama-cpp-python"],
    "transformers": ["torch", "transformers", "gguf", "numpy"],
}
SETTINGS = ["loaded", "int8", "int4"]


# Tokens of a prompt that comes first and does not count: libraries set themselves up at their first pass.
WARM_UP = 32


def prompt_ids(count):
    # Any ids will do for the time that they take; low ones may be control tokens.
    return [1000 + (i * 7919) % 20000 for i in range(count)]


def llamacpp(arguments):
    from llama_cpp import Llama

    model = Llama(arguments.gguf, n_ctx=max(arguments.tokens) + arguments.decode + 8, n_batch=512,
                  n_threads=arguments.threads, n_threads_batch=arguments.threads, verbose=False)
    for count in arguments.tokens:
        model.reset()
        began = time.perf_counter()
        model.eval(prompt_ids(count))
        filled = time.perf_counter()
        for _ in range(arguments.decode):
            model.eval([model.sample(temp=0.0)])
        yield count / (filled - began), arguments.decode / (time.perf_counter() - filled)


def transformers(arguments):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(arguments.threads)
    path = pathlib.Path(arguments.gguf)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16)
    for count in arguments.tokens:
        with torch.inference_mode():
            began = time.perf_counter()
            out = model(torch.tensor([prompt_ids(count)]), use_cache=True, logits_to_keep=1)
            filled = time.perf_counter()
            for _ in range(arguments.decode):
                last = out.logits[:, -1:].argmax(-1)
                out = model(last, past_key_values=out.past_key_values, use_cache=True)
            yield count / (filled - began), arguments.decode / (time.perf_counter() - filled)


def in_own_process(name, arguments):
    """Prefill and decode rates at each length; a sentence where the peer can't be measured."""
    command = [sys.executable, __file__, "--one", name, "--gguf", arguments.gguf, "--threads", str(arguments.threads),
               "--decode", str(arguments.decode), "--tokens", lengths(arguments)]
    environment = dict(os.environ, PYTHONPATH=arguments.libs, OMP_NUM_THREADS=str(arguments.threads),
                       HF_HUB_OFFLINE="1")
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        return f"{name}: {last}"
    return without_warm_up(json.loads(done.stdout.splitlines()[-1]))


def without_warm_up(rates):
    return [kind[1:] for kind in rates]


def lengths(arguments):
    return ",".join(map(str, [WARM_UP, *arguments.tokens]))


def addenda(setting, arguments):
    command = [arguments.bench, "prefill", "--json", "--model", arguments.gguf, "--runs", "1", "--weights", setting,
               "--threads", str(arguments.threads), "--decode", str(arguments.decode),
               "--tokens", lengths(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
    line = json.loads(done.stdout)
    return without_warm_up([line["prefill_tokens_per_s"], line["decode_tokens_per_s"]])


def clients(arguments):
    command = [arguments.bench, "clients", "--json", "--model", arguments.gguf,
               f"--serve-flag=--weights={arguments.clients_weights}", f"--serve-flag=--threads={arguments.threads}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1800)
    return json.loads(done.stdout)


def medians(rounds):
    """Of rounds of [prefill rates, decode rates]."""
    return [[round(statistics.median(values), 1) for values in zip(*(one[kind] for one in rounds))]
            for kind in (0, 1)]


def ratios(ours, theirs):
    return [round(a / b, 2) for a, b in zip(ours, theirs)]


def compare(arguments):
    rounds = {name: [] for name in [*SETTINGS, *PEERS]}
    missing = {}
    for number in range(arguments.runs):
        for name in SETTINGS:
            rounds[name].append(addenda(name, arguments))
        for name in PEERS:
            if name in missing:
                continue
            measured = in_own_process(name, arguments)
            if isinstance(measured, str):
                missing[name] = measured
            else:
                rounds[name].append(measured)
        print(f"round {number + 1} of {arguments.runs}", file=sys.stderr)
    rates = {name: medians(runs) for name, runs in rounds.items() if len(runs) == arguments.runs}
    best = [max(rates[name][1][at] for name in SETTINGS) for at in range(len(arguments.tokens))]
    line = {
        "date": datetime.date.today().isoformat(), "machine": platform.machine(), "cpus": os.cpu_count(),
        "model": pathlib.Path(arguments.gguf).parent.name, "threads": arguments.threads, "runs": arguments.runs,
        "tokens": arguments.tokens, "decode": arguments.decode,
        "rates": {name: {"prefill": pair[0], "decode": pair[1]} for name, pair in rates.items()},
        "missing": missing,
    }
    for name in PEERS:
        if name in rates:
            line[f"prefill_vs_{name}"] = ratios(rates["loaded"][0], rates[name][0])
            line[f"decode_vs_{name}"] = ratios(best, rates[name][1])
    if arguments.clients_weights != "none":
        many = clients(arguments)
        line["batch16_vs_1"] = round(many["many_vs_one"], 2)
        line["itl_ratio"] = many["itl_ratio"] and round(many["itl_ratio"], 2)
        line["clients"] = many
    return line


def install(folder):
    for packages in PEERS.values():
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, *packages], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", help="the program addenda-bench")
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--libs", default="", help="folder that the peers were installed into")
    parser.add_argument("--install", action="store_true", help="install the peers into that folder first")
    parser.add_argument("--tokens", type=lambda text: [int(one) for one in text.split(",")], default=[512, 2048, 4096])
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clients-weights", default="int8", help="weights of the daemon with many clients; none: skip")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--one", choices=sorted(PEERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measured = list({"llamacpp": llamacpp, "transformers": transformers}[arguments.one](arguments))
        print(json.dumps([list(kind) for kind in zip(*measured)]))
        return
    if arguments.install:
        install(arguments.libs)
    line = json.dumps(compare(arguments))
    print(line)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(line + "\n")


if __name__ == "__main__":
    main()
