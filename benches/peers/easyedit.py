#!/usr/bin/env python3
"""Addenda and EasyEdit side by side: the same model, records and metrics, one row each.

    python3 benches/peers/easyedit.py --model smollm2-135m --peer-model MODEL.gguf --counterfact FILE \
        --facts 20 --batch 20 --method memit --stats-text editor/data/corpus.txt --threads 1

EasyEdit (https://github.com/zjunlp/EasyEdit, MIT) is brought by whoever runs this: a checkout, or `easyeditor` of
PyPI unpacked (`pip download --no-deps`), on PYTHONPATH, and beside it torch, transformers, numpy, tqdm and pyyaml, and
gguf for a model in that form. Of what else it asks for nothing is needed: only its methods' own modules are imported.
Where it is not at hand, its row says why and the script ends well; Addenda's row is printed all the same. Tried with
easyeditor 0.0.1.dev0, which has ROME and MEMIT but no AlphaEdit, torch 2.15.0 and transformers 5.24.0, on a CPU.

Its hyper-parameters are those that it ships for models of Llama's kind, in easyedit-METHOD.yaml beside this script.
The second moment that MEMIT needs is taken by EasyEdit's own code from `--stats-text`, before the clock starts, as
Addenda's is; without that option EasyEdit reads it from its `stats_dir` or downloads Wikipedia for it.

Neither side's own metrics are used for the other's row: both are the share of records whose new answer is likelier
than the true one (mean log-probability per token) at the prompt and at a paraphrase, whose new answer is the likeliest
token by token, and whose true answer at a neighbour is still likelier where it was before; and how much perplexity
rose on a text, where there is one. All records are edited into one model and measured on it, in f32. Before each text
both sides put the same token: Addenda's (`--text-start`), for it is what this side's model is edited and asked with.
"""

import argparse
import contextlib
import importlib
import importlib.util
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import time
import types

KEYS = ["efficacy", "efficacy_top1", "paraphrase", "locality_kept", "ppl_rise_max", "seconds_per_fact",
        "cpu_seconds_per_fact"]

# Of a method: EasyEdit's hyper-parameters and what applies them.
METHODS = {
    "rome": ("ROMEHyperParams", "apply_rome_to_model"),
    "memit": ("MEMITHyperParams", "apply_memit_to_model"),
    "alphaedit": ("AlphaEditHyperParams", "apply_AlphaEdit_to_model"),
}

# Perplexity as addenda-bench takes it: tokens of the text, and of a window.
TEXT_TOKENS, WINDOW = 20000, 512

# Characters of one of the texts that the second moment is taken from; EasyEdit's own are articles.
PIECE = 2000


class Skip(Exception):
    """The other side can't be run here, and why."""


def addenda(args):
    command = [args.bench, "edit", "--model", args.model, "--counterfact", args.counterfact,
               "--facts", str(args.facts), "--method", args.method, "--sequential", "--batch", str(batch(args)),
               "--threads", str(args.threads), "--fluency", "0", "--retire", "0", "--json"]
    if args.text:
        command += ["--text", args.text]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def batch(args):
    return 1 if args.method == "rome" else args.batch


def records(args):
    with open(args.counterfact, encoding="utf-8") as file:
        found, seen = [], set()
        for record in json.load(file):
            place = (record["subject"], record["prompt"])
            if record["subject"] in record["prompt"] and place not in seen:
                seen.add(place)
                found.append(record)
    return found[: args.facts]


def text(args):
    """The text for perplexity: what addenda-bench takes."""
    path = pathlib.Path(args.text) if args.text else pathlib.Path(args.counterfact).with_name("wikitext2-test.txt")
    return path.read_text(encoding="utf-8") if args.text or path.is_file() else None


def easyedit(args):
    try:
        import torch
    except ImportError as error:
        raise Skip(f"{error}; see this script's beginning") from error
    method, hparams = methods(args)
    model, tokenizer = load(torch, args)
    model.to("cpu" if on_cpu(hparams) else f"cuda:{hparams.device}")
    if args.threads:
        torch.set_num_threads(args.threads)
    # What EasyEdit seeds with.
    torch.manual_seed(42)
    rows, prose = records(args), text(args)
    then = marks(torch, model, tokenizer, rows)
    ppl = perplexity(torch, model, tokenizer, prose)
    with cuda_is_cpu(torch, hparams), contextlib.redirect_stdout(sys.stderr):
        layers_give_tuples(torch, model, tokenizer, hparams)
        with tempfile.TemporaryDirectory() as folder:
            if args.stats_text:
                hparams.stats_dir = folder
            prepare(model, tokenizer, hparams, args)
            seconds, cpu = edit(method, model, tokenizer, hparams, rows, batch(args))
    now = marks(torch, model, tokenizer, rows)
    rise = None if prose is None else perplexity(torch, model, tokenizer, prose) / ppl - 1
    kept = [after["locality"] for before, after in zip(then, now) if before["locality"]]
    return {
        "efficacy": mean(mark["efficacy"] for mark in now),
        "efficacy_top1": mean(mark["top1"] for mark in now),
        "paraphrase": mean(mark["paraphrase"] for mark in now),
        "locality_kept": mean(kept) if kept else None,
        "ppl_rise_max": rise,
        "seconds_per_fact": seconds / len(rows),
        "cpu_seconds_per_fact": cpu / len(rows),
    }


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def methods(args):
    """EasyEdit's function for the method, and its hyper-parameters."""
    path = pathlib.Path(args.hparams or pathlib.Path(__file__).with_name(f"easyedit-{args.method}.yaml"))
    if not path.is_file():
        raise Skip(f"no {path.name}: name EasyEdit's file of hyper-parameters with --hparams")
    spec = importlib.util.find_spec("easyeditor")
    if spec is None:
        raise Skip("No module named 'easyeditor'; see this script's beginning")
    # `import easyeditor` as a whole needs timm, opencv, peft and more that no method here does; so the two packages
    # whose __init__ asks for them are bare ones, and below them EasyEdit's modules are found as ever.
    for name, inner in (("easyeditor", "."), ("easyeditor.models", "models")):
        package = types.ModuleType(name)
        package.__path__ = [str(pathlib.Path(place, inner)) for place in spec.submodule_search_locations]
        sys.modules[name] = package
    stand_in("datasets", load_dataset=no_data)
    # EasyEdit's ROME imports this and never uses it.
    stand_in("matplotlib.style", context=None)
    try:
        module = importlib.import_module(f"easyeditor.models.{args.method}")
    except ImportError as error:
        raise Skip(f"{error}; this EasyEdit has no {args.method}, or lacks what it needs") from error
    settings, function = METHODS[args.method]
    return getattr(module, function), getattr(module, settings).from_hparams(str(path))


def stand_in(name, **members):
    """A module of that name with these members, where none is installed."""
    try:
        importlib.import_module(name)
        return
    except ImportError:
        pass
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        part = ".".join(parts[:end])
        sys.modules.setdefault(part, types.ModuleType(part))
    vars(sys.modules[name]).update(members)


def no_data(*_):
    raise Skip("no second moment in stats_dir and no `datasets` to download a text with: give --stats-text")


def load(torch, args):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = pathlib.Path(args.peer_model or args.model)
    if not path.exists():
        raise Skip(f"there is no {path}: name the model's folder or .gguf file with --peer-model")
    place, options = path, {}
    if path.is_file():
        place, options = path.parent, {"gguf_file": path.name}
    tokenizer = AutoTokenizer.from_pretrained(place, **options)
    if path.is_file():
        options.update(unpacked())
    model = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32, **options).eval()
    # As EasyEdit loads models of Llama's kind.
    tokenizer.pad_token_id = tokenizer.eos_token_id
    tokenizer.padding_side = "right"
    begin_texts(tokenizer, args.text_start)
    return model, tokenizer


def unpacked():
    try:
        # From version 5 on, a GGUF's weights may stay packed, and then they can't be edited.
        from transformers import GgufConfig
        return {"quantization_config": GgufConfig(dequantize=True)}
    except ImportError:
        return {}


def begin_texts(tokenizer, start):
    """Puts a token before every text, unless the tokenizer does so by itself or has no such token."""
    known = start in tokenizer.get_vocab()
    if tokenizer("").input_ids or not known:
        return
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, tokenizer.convert_tokens_to_ids(start))])
    # EasyEdit takes this token off its targets.
    tokenizer.bos_token = start


def on_cpu(hparams):
    return str(hparams.device) == "cpu"


def cuda_is_cpu(torch, hparams):
    """EasyEdit of 2023 knows no device but `cuda:` and a number: on a CPU, each such name is read as the CPU."""
    if not on_cpu(hparams):
        return contextlib.nullcontext()

    def here(value):
        is_device = isinstance(value, (str, torch.device)) and str(value).startswith("cuda")
        return torch.device("cpu") if is_device else value

    class OnCpu(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, kinds, given=(), named=None):
            return function(*map(here, given), **{name: here(value) for name, value in (named or {}).items()})

    return OnCpu()


def layers_give_tuples(torch, model, tokenizer, hparams):
    """EasyEdit of 2023 takes the first part of what a layer gives; with newer Transformers that is a tensor and no
    tuple, and its first part would be the first text of a batch. So the layers' class is exchanged for one whose
    hooks meet a tuple, while the model still gets the tensor in it."""
    from easyeditor.util import nethook

    layers = [nethook.get_module(model, hparams.layer_module_tmp.format(at))
              for at in range(model.config.num_hidden_layers)]
    with torch.no_grad(), nethook.Trace(model, hparams.layer_module_tmp.format(0)) as trace:
        model(**tokenizer("The", return_tensors="pt").to(model.device))
    if not isinstance(trace.output, torch.Tensor):
        return
    kind = type(layers[0])

    class Tupled(kind):
        def forward(self, *given, **named):
            return (super().forward(*given, **named),)

        def __call__(self, *given, **named):
            return super().__call__(*given, **named)[0]

    for layer in layers:
        layer.__class__ = Tupled


def prepare(model, tokenizer, hparams, args):
    """Second moments of the layers, by EasyEdit's own code and kept by it, so that no edit waits for them."""
    if not hparams.mom2_adjustment:
        return
    from easyeditor.models.rome import layer_stats

    if args.stats_text:
        texts = pieces(tokenizer, args)
        layer_stats.load_dataset = lambda *_: {"train": texts}
        hparams.mom2_n_samples = len(texts)
    for layer in hparams.layers:
        layer_stats.layer_stats(model, tokenizer, hparams.rewrite_module_tmp.format(layer), hparams.stats_dir,
                                hparams.mom2_dataset, to_collect=["mom2"], sample_size=hparams.mom2_n_samples,
                                precision=hparams.mom2_dtype, hparams=hparams)


def pieces(tokenizer, args):
    """The text's beginning, in parts of some paragraphs each."""
    found, lines, tokens = [], [], 0
    with open(args.stats_text, encoding="utf-8") as file:
        for line in file:
            lines.append(line)
            if sum(map(len, lines)) >= PIECE:
                found.append({"text": "".join(lines)})
                tokens += len(tokenizer(found[-1]["text"]).input_ids)
                lines = []
            if tokens >= args.stats_tokens:
                return found
    return found + [{"text": "".join(lines)}] if lines else found


def edit(method, model, tokenizer, hparams, rows, batch):
    """Edits all records into the model, batch by batch; the seconds that it took, by the clock and by processors."""
    requests = [{"case_id": at, "prompt": row["prompt"], "subject": row["subject"],
                 "target_new": row["target_new"], "ground_truth": row["ground_truth"]}
                for at, row in enumerate(rows)]
    begun, cpu = time.monotonic(), time.process_time()
    for at in range(0, len(requests), batch):
        method(model, tokenizer, requests[at : at + batch], hparams)
    return time.monotonic() - begun, time.process_time() - cpu


def log_probabilities(torch, model, ids, begin):
    """Of each token from that place on, and whether it is the likeliest there."""
    row = torch.tensor([ids], device=model.device)
    with torch.no_grad():
        logits = model(row).logits[0, begin - 1 : -1].float().log_softmax(-1)
    target = row[0, begin:]
    return logits.gather(1, target[:, None])[:, 0], logits.argmax(-1) == target


def marks(torch, model, tokenizer, rows):
    def score(prompt, answer):
        head, both = tokenizer(prompt).input_ids, tokenizer(f"{prompt} {answer}").input_ids
        if both[: len(head)] != head or len(both) == len(head):
            both = head + tokenizer(f" {answer}", add_special_tokens=False).input_ids
        found, likeliest = log_probabilities(torch, model, both, len(head))
        return found.mean().item(), bool(likeliest.all())

    found = []
    for row in rows:
        new, top1 = score(row["prompt"], row["target_new"])
        true, _ = score(row["prompt"], row["ground_truth"])
        again, _ = score(row["rephrase_prompt"], row["target_new"])
        again_true, _ = score(row["rephrase_prompt"], row["ground_truth"])
        near, _ = score(row["locality_prompt"], row["target_new"])
        near_true, _ = score(row["locality_prompt"], row["locality_ground_truth"])
        found.append({"efficacy": new > true, "top1": top1, "paraphrase": again > again_true,
                      "locality": near_true > near})
    return found


def perplexity(torch, model, tokenizer, prose):
    if prose is None:
        return None
    start = tokenizer("").input_ids
    ids = tokenizer(prose, add_special_tokens=False).input_ids[:TEXT_TOKENS]
    total = count = 0
    for at in range(0, len(ids), WINDOW - len(start)):
        found, _ = log_probabilities(torch, model, start + ids[at : at + WINDOW - len(start)], 1)
        total += found.sum().item()
        count += len(found)
    return math.exp(-total / count)


def row(name, figures):
    cells = [f"{figures[key]:.4f}" if figures.get(key) is not None else "-" for key in KEYS]
    print(f"{name:10} " + " ".join(f"{cell:>20}" for cell in cells), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the model's path, or its name in Addenda's catalogue")
    parser.add_argument("--peer-model", help="the same model as a folder or .gguf file; --model, if none")
    parser.add_argument("--counterfact", required=True)
    parser.add_argument("--facts", type=int, default=20)
    parser.add_argument("--batch", type=int, default=10, help="facts of one edit; ROME takes one")
    parser.add_argument("--method", choices=sorted(METHODS), default="memit")
    parser.add_argument("--hparams", help="EasyEdit's hyper-parameters; easyedit-METHOD.yaml beside this, if none")
    parser.add_argument("--stats-text", help="the text for EasyEdit's second moments")
    parser.add_argument("--stats-tokens", type=int, default=40000, help="tokens of it at most")
    parser.add_argument("--text-start", default="<|endoftext|>", help="what Addenda puts before a text of this model")
    parser.add_argument("--text", help="the text for perplexity; wikitext2-test.txt beside the records, if none")
    parser.add_argument("--threads", type=int, default=0, help="of both sides; 0 leaves it to each")
    parser.add_argument("--bench", default="target/release/addenda-bench")
    args = parser.parse_args()
    print(f"{'':10} " + " ".join(f"{key:>20}" for key in KEYS), flush=True)
    row("addenda", addenda(args))
    try:
        row("easyedit", easyedit(args))
    except Skip as reason:
        print(f"easyedit   skipped: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
