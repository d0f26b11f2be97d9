"""Train the small byte-level BPE on questions and answers (OCR words and numbers are left out of
the training text, so that printed words are spelled letter by letter)."""
import re
import sys

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import shapes


def corpus(count):
    for i in range(count):
        for f in range(8):
            _, qas = shapes.make_scene("tokenizer", f, i)
            for _, q, a in qas:
                if re.fullmatch(r"[A-Z]{2,}|[0-9]{2,}", a):
                    a = " ".join(a)
                yield f"User: \n{q}\nAssistant: {a}"
    for ch in "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789":
        for _ in range(400):
            yield f" {ch}"


def main(path="model/tokenizer.json", vocab=512):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True, normalized=False) for t in ("<pad>", "<s>", "</s>", "<image>")]
    trainer = trainers.BpeTrainer(vocab_size=vocab, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(corpus(1500), trainer)
    tok.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    tok.save(path)
    e = tok.encode("User: <image>\nWhat color is the circle?\nAssistant: a red circle left of a blue square")
    print(tok.get_vocab_size(), e.tokens, e.ids)
    print(tok.encode(" STOP", add_special_tokens=False).tokens, tok.encode(" 1234", add_special_tokens=False).tokens)


if __name__ == "__main__":
    main(*sys.argv[1:])
