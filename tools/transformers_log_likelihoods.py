"""Scores token windows with transformers: JSON on standard input and output.

For any Python that has torch and transformers, run as a file; nothing of this project is imported. In:
{"folder": …, "dtype": "auto" | "float32" | "bfloat16", "windows": [[context, scored], …]}, lists of token ids. Out:
{"log_likelihoods": [nats, …], "class": …, "dtype": …, "transformers": version, "torch": version}.
"""

from __future__ import annotations

import json
import sys


def main() -> None:
    # Text needs no torchvision, and one that does not fit its torch keeps transformers from loading any model.
    sys.modules["torchvision"] = None  # type: ignore[assignment] # the documented way to say that it cannot be imported
    import torch
    import transformers

    asked = json.load(sys.stdin)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        asked["folder"],
        dtype="auto" if asked["dtype"] == "auto" else getattr(torch, asked["dtype"]),
        local_files_only=True,
        # The plain formula: a fused kernel may round otherwise.
        attn_implementation="eager",
    )
    model.train(False)
    totals = []
    for number, (context, scored) in enumerate(asked["windows"], 1):
        ids = torch.tensor([context + scored])
        with torch.inference_mode():
            logits = model(ids).logits[0, len(context) - 1 : -1]
        # In double precision, whatever the model computes in: thousands of terms are added.
        logprobs = torch.log_softmax(logits.double(), dim=-1)
        totals.append(float(logprobs.gather(1, torch.tensor(scored)[:, None]).sum()))
        print(f"window {number}/{len(asked['windows'])}", file=sys.stderr)
    reply = {
        "log_likelihoods": totals,
        "class": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    print(json.dumps(reply))


if __name__ == "__main__":
    main()
