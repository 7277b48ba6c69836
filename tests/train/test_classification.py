"""The classification head, trained by Hugging Face's own Trainer."""

import torch
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

import wkv
from wkv.hf import RwkvConfig


class Rows:
    """Sequences of different lengths; the label is whether token 5 occurs anywhere."""

    def __init__(self, count, seed):
        g = torch.Generator().manual_seed(seed)
        self.rows = []
        for i in range(count):
            length = int(torch.randint(4, 12, (1,), generator=g))
            ids = torch.randint(6, 17, (length,), generator=g)
            if i % 2:
                ids[int(torch.randint(0, length, (1,), generator=g))] = 5
            ids = torch.cat([ids, torch.zeros(12 - length, dtype=torch.long)])
            self.rows.append({"input_ids": ids, "attention_mask": ids != 0, "labels": i % 2})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, item):
        return self.rows[item]


def test_the_classification_head_learns_a_label_from_padded_sequences(tmp_path):
    wkv.register()
    torch.manual_seed(0)
    config = RwkvConfig(
        vocab_size=17, hidden_size=32, num_hidden_layers=2, num_labels=2, pad_token_id=0
    )
    model = AutoModelForSequenceClassification.from_config(config)
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=120,
            per_device_train_batch_size=16,
            learning_rate=1e-2,
            use_cpu=True,
            disable_tqdm=True,
            report_to=[],
            save_strategy="no",
        ),
        train_dataset=Rows(256, 0),
    )
    trainer.train()
    found = trainer.predict(Rows(64, 1))
    accuracy = (found.predictions.argmax(-1) == found.label_ids).mean()
    assert accuracy > 0.9
