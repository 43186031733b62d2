"""Addenda beside Transformers and llama.cpp: the same GGUF, one run, one setting of threads.

    compare.py --bench target/release/addenda-bench --gguf MODEL.gguf --libs FOLDER

Each round measures all of them, one after the other, each in a process of its own, so that all meet
the same machine; medians of the rounds are compared. Peers come from PyPI into FOLDER (`--install`
puts them there; llama.cpp is compiled for minutes); one that is not there is left out, and the line
says why. Prints one line of JSON, rates in tokens a second, and writes it to `--out`.

Addenda decodes with each of its settings, and the fastest is compared. Many clients at once are Addenda's daemon
over gRPC; against them llama.cpp computes as many sequences in one process, without a server between: each prompt a
batch of its own, then one batch for the next token of all, greedily.
"""

import argparse
import ctypes
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
    "transformers": ["torch", "transformers", "accelerate", "gguf", "numpy"],
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
    options = {}
    try:
        # From version 5 on, a GGUF's weights may stay packed, and then they are not computed in bf16.
        from transformers import GgufConfig
        options["quantization_config"] = GgufConfig(dequantize=True)
    except ImportError:
        pass
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16, **options)
    for count in arguments.tokens:
        with torch.inference_mode():
            began = time.perf_counter()
            out = model(torch.tensor([prompt_ids(count)]), use_cache=True, logits_to_keep=1)
            filled = time.perf_counter()
            for _ in range(arguments.decode):
                last = out.logits[:, -1:].argmax(-1)
                out = model(last, past_key_values=out.past_key_values, use_cache=True)
            yield count / (filled - began), arguments.decode / (time.perf_counter() - filled)


# Clients at once, tokens of each prompt and of each answer: what `addenda-bench clients` does unless told otherwise.
CLIENTS, PROMPT, ANSWER = 16, 256, 128


def llamacpp_together(arguments):
    """Tokens a second of as many sequences, from the first prompt to the last token."""
    import llama_cpp
    import numpy

    llama_cpp.llama_backend_init()
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    model = llama_cpp.llama_model_load_from_file(arguments.gguf.encode(), llama_cpp.llama_model_default_params())
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = CLIENTS * (PROMPT + ANSWER)
    settings.n_batch = settings.n_ubatch = 512
    settings.n_seq_max = CLIENTS
    settings.n_threads = settings.n_threads_batch = arguments.threads
    context = llama_cpp.llama_init_from_model(model, settings)
    batch = llama_cpp.llama_batch_init(512, 0, 1)

    def compute(tokens):
        """Of (id, position, sequence, whether its logits are wanted): the likeliest successors of those wanted."""
        batch.n_tokens = len(tokens)
        for at, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[at], batch.pos[at] = token, position
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
            batch.logits[at] = wanted
        if llama_cpp.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        wanted = [at for at, token in enumerate(tokens) if token[3]]
        rows = (numpy.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, at), (vocabulary,)) for at in wanted)
        return [int(row.argmax()) for row in rows]

    compute([(1, 0, 0, True)])
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    began = time.perf_counter()
    last = []
    for sequence in range(CLIENTS):
        prompt = [(1000 + (at * 7919 + sequence) % 20000, at, sequence, at == PROMPT - 1) for at in range(PROMPT)]
        last += compute(prompt)
    for step in range(ANSWER - 1):
        last = compute([(token, PROMPT + step, sequence, True) for sequence, token in enumerate(last)])
    # In the form that the others have: one length, one kind of rate.
    yield CLIENTS * ANSWER / (time.perf_counter() - began), 0.0


def in_own_process(name, arguments):
    """Prefill and decode rates at each length; a sentence where the peer can't be measured."""
    command = [sys.executable, __file__, "--one", name, "--gguf", arguments.gguf, "--threads", str(arguments.threads),
               "--decode", str(arguments.decode), "--tokens", lengths(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(arguments), timeout=900)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        return f"{name}: {last}"
    return without_warm_up(json.loads(done.stdout.splitlines()[-1]))


def environment(arguments):
    return dict(os.environ, PYTHONPATH=arguments.libs, OMP_NUM_THREADS=str(arguments.threads), HF_HUB_OFFLINE="1")


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
    return without_warm_up([line["prefill_tokens_per_s"], line["decode_tokens_per_s"], line["decode_of_limit"]])


def clients(arguments):
    command = [arguments.bench, "clients", "--json", "--model", arguments.gguf,
               "--runs", "1", f"--clients={CLIENTS}", f"--prompt-tokens={PROMPT}", f"--answer-tokens={ANSWER}",
               f"--serve-flag=--weights={arguments.clients_weights}", f"--serve-flag=--threads={arguments.threads}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1800)
    return json.loads(done.stdout)


def together(arguments):
    command = [sys.executable, __file__, "--one", "llamacpp_together", "--gguf", arguments.gguf,
               "--threads", str(arguments.threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(arguments), timeout=900)
    if done.returncode != 0:
        return None
    return json.loads(done.stdout.splitlines()[-1])[0][0]


def medians(rounds):
    """Of rounds of [prefill rates, decode rates, more]."""
    return [[round(statistics.median(values), 2) for values in zip(*(one[kind] for one in rounds))]
            for kind in range(len(rounds[0]))]


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
        # Of what a copy of as many bytes as the packed weights have would allow.
        "decode_int8_of_limit": rates["int8"][2],
    }
    for name in PEERS:
        if name in rates:
            line[f"prefill_vs_{name}"] = ratios(rates["loaded"][0], rates[name][0])
            line[f"decode_vs_{name}"] = ratios(best, rates[name][1])
    if arguments.clients_weights != "none":
        line.update(many(arguments))
    return line


def many(arguments):
    """Clients of the daemon at once, in turn with llama.cpp; medians of all runs."""
    runs, peers = [], []
    for number in range(arguments.runs):
        runs.append(clients(arguments))
        peers.append(together(arguments))
        print(f"clients, round {number + 1} of {arguments.runs}", file=sys.stderr)

    def median(name):
        values = [run[name] for run in runs if run[name] is not None]
        return round(statistics.median(values), 2) if values else None

    line = {f"batch{CLIENTS}_vs_1": median("many_vs_one"), "itl_ratio": median("itl_ratio"),
            "one_tokens_per_s": median("one_tokens_per_s"), "many_tokens_per_s": median("many_tokens_per_s")}
    if None not in peers:
        line["llamacpp_together_tokens_per_s"] = round(statistics.median(peers), 1)
        ratios_of_runs = [run["many_tokens_per_s"] / peer for run, peer in zip(runs, peers)]
        line[f"batch{CLIENTS}_vs_llamacpp"] = round(statistics.median(ratios_of_runs), 2)
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
    parser.add_argument("--clients-weights", default="auto", help="weights of the daemon with many clients; none: skip")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--one", choices=sorted(PEERS) + ["llamacpp_together"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        measured = list({"llamacpp": llamacpp, "llamacpp_together": llamacpp_together,
                         "transformers": transformers}[arguments.one](arguments))
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
