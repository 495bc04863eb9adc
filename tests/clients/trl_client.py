"""TRL's SFTTrainer over plain text, a few steps."""

import json
import sys
import tempfile

import torch
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(request, answer):
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(request["model"])
    data = Dataset.from_list([{"text": text} for text in request["texts"]])
    batches = []
    with tempfile.TemporaryDirectory() as folder:
        arguments = trl.SFTConfig(
            output_dir=folder, max_steps=8, per_device_train_batch_size=len(request["texts"]), learning_rate=1e-3,
            logging_steps=1, report_to="none", save_strategy="no", use_cpu=True, bf16=False, lr_scheduler_type="constant",
            gradient_checkpointing=False, max_length=64, seed=0,
        )  # fmt: skip
        trainer = trl.SFTTrainer(model, args=arguments, train_dataset=data, processing_class=tokenizer)
        collate = trainer.data_collator

        def collected(rows):
            batches.append(collate(rows))
            return batches[-1]

        trainer.data_collator = collected
        trainer.train()
    first = batches[0]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "version": trl.__version__,
        "rows": first["input_ids"].tolist(),
        "labels": first["labels"].tolist(),
        "losses": losses,
        # which TRL switches on for the architectures of softmax routing
        "auxiliary": trainer.state.log_history[0].get("aux_loss", 0.0)
        * getattr(model.config, "router_aux_loss_coef", 0.0),
        "ids": [tokenizer(prompt)["input_ids"] for prompt in request["prompts"]],
    }


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        asked = json.load(file)
    facts = main(asked, sys.argv[2])
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(facts, file, ensure_ascii=False)
