#!/usr/bin/env python3
"""Addenda and EasyEdit side by side: the same model, records and metrics, one row each.

    python3 benches/peers/easyedit.py --model DIR --counterfact FILE --facts 20 --method memit \
        --hparams EasyEdit/hparams/MEMIT/mine.yaml --bench target/release/addenda-bench

EasyEdit (https://github.com/zjunlp/EasyEdit, MIT) is brought by whoever runs this: clone it, put it on PYTHONPATH, and
write a file of its hyper-parameters for the model (its `model_name` is the model's directory, `device` is -1 or 0).
Where it is not at hand, its row says why and the script ends well; Addenda's row is printed all the same.

Neither side's own metrics are used for the other's row: both are the share of records whose new answer is likelier
than the true one (mean log-probability per token) at the prompt and at a paraphrase, whose new answer is the likeliest
token by token, and whose true answer at a neighbour is still likelier where it was before. All records are edited
into one model and measured on it.
"""

import argparse
import json
import subprocess
import sys
import time

KEYS = ["efficacy", "efficacy_top1", "paraphrase", "locality_kept", "seconds_per_fact"]


class Skip(Exception):
    """The other side can't be run here, and why."""


def addenda(args):
    command = [args.bench, "edit", "--model", args.model, "--counterfact", args.counterfact,
               "--facts", str(args.facts), "--method", args.method, "--sequential",
               "--batch", str(args.batch), "--fluency", "0", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def records(args):
    with open(args.counterfact, encoding="utf-8") as file:
        found, seen = [], set()
        for record in json.load(file):
            place = (record["subject"], record["prompt"])
            if record["subject"] in record["prompt"] and place not in seen:
                seen.add(place)
                found.append(record)
    return found[: args.facts]


def easyedit(args):
    if not args.hparams:
        raise Skip("no --hparams: name EasyEdit's file of hyper-parameters for this model")
    try:
        import torch
        import easyeditor
    except ImportError as error:
        raise Skip(f"{error}; clone EasyEdit, install what it needs and put it on PYTHONPATH") from error
    kinds = {"rome": "ROMEHyperParams", "memit": "MEMITHyperParams", "alphaedit": "AlphaEditHyperParams"}
    kind = getattr(easyeditor, kinds[args.method], None)
    if kind is None:
        raise Skip(f"this EasyEdit has no {kinds[args.method]}")
    rows = records(args)
    editor = easyeditor.BaseEditor.from_hparams(kind.from_hparams(args.hparams))
    before = marks(torch, editor.model, editor.tok, rows)
    ask = {
        "prompts": [row["prompt"] for row in rows],
        "ground_truth": [row["ground_truth"] for row in rows],
        "target_new": [row["target_new"] for row in rows],
        "subject": [row["subject"] for row in rows],
    }
    begun = time.monotonic()
    if args.method == "rome":
        edited = editor.edit(**ask, sequential_edit=True)
    else:
        edited = editor.batch_edit(**ask, sequential_edit=True)
    seconds = time.monotonic() - begun
    after = marks(torch, edited[1], editor.tok, rows)
    kept = [now["locality"] for then, now in zip(before, after) if then["locality"]]
    mean = lambda name: sum(mark[name] for mark in after) / len(after)
    return {
        "efficacy": mean("efficacy"),
        "efficacy_top1": mean("top1"),
        "paraphrase": mean("paraphrase"),
        "locality_kept": sum(kept) / len(kept) if kept else None,
        "seconds_per_fact": seconds / len(rows),
    }


def marks(torch, model, tokenizer, rows):
    def score(prompt, answer):
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        head = start + tokenizer(prompt, add_special_tokens=False).input_ids
        tail = tokenizer(" " + answer, add_special_tokens=False).input_ids
        ids = torch.tensor([head + tail], device=model.device)
        with torch.no_grad():
            logits = model(ids).logits[0, len(head) - 1 : -1].float().log_softmax(-1)
        target = ids[0, len(head) :]
        mean = logits.gather(1, target[:, None]).mean().item()
        return mean, bool((logits.argmax(-1) == target).all())

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


def row(name, figures):
    cells = [f"{figures[key]:.3f}" if figures.get(key) is not None else "-" for key in KEYS]
    print(f"{name:10} " + " ".join(f"{cell:>16}" for cell in cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the model's directory")
    parser.add_argument("--counterfact", required=True)
    parser.add_argument("--facts", type=int, default=20)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--method", choices=["rome", "memit", "alphaedit"], default="memit")
    parser.add_argument("--hparams", help="EasyEdit's hyper-parameters for this model")
    parser.add_argument("--bench", default="target/release/addenda-bench")
    args = parser.parse_args()
    print(f"{'':10} " + " ".join(f"{key:>16}" for key in KEYS))
    row("addenda", addenda(args))
    try:
        row("easyedit", easyedit(args))
    except Skip as reason:
        print(f"easyedit   skipped: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
