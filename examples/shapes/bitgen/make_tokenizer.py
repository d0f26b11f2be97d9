"""Write model/tokenizer.json: words, and every name of one or two shapes ("red circle", "red circle and blue star", in both
orders) as one token, because BitGen's text feature reads the first token only.  Articles and full stops are dropped."""
import os
import sys

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from scenes import HERE, OBJECTS, PAIRS, PROMPTS, caption, name, phrase, shapes

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = [*shapes.COLORS, *shapes.SHAPES, "and", ",", "one", "two", "three", "shape:", "shapes:",
         "describe", "image", "what", "is", "in", "picture", "caption"]
NAMES = ([name(o) for o in OBJECTS]
         + [phrase([OBJECTS[i], OBJECTS[j]]) for i, j in PAIRS] + [phrase([OBJECTS[j], OBJECTS[i]]) for i, j in PAIRS])
FIRST = len(SPECIAL) + len(WORDS)  # the id of the first name


def main(path):
    tok = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    drop = [(" a ", " "), (" an ", " "), (" the ", " "), (".", ""), ("?", "")]
    tok.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Prepend(" "),
                                           *(normalizers.Replace(a, b) for a, b in drop), normalizers.Strip()])
    tok.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tok.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tok.add_tokens([AddedToken(n, single_word=True, normalized=True) for n in NAMES])
    assert tok.token_to_id(NAMES[0]) == FIRST and tok.get_vocab_size() == FIRST + len(NAMES)
    tok.save(path)
    print(tok.get_vocab_size(), "tokens")
    for text in (phrase([OBJECTS[0], OBJECTS[9]]), "A red circle and an orange star.", "a red circle", "stars and a star",
                 caption([OBJECTS[0], OBJECTS[9], OBJECTS[20]]), *PROMPTS):
        e = tok.encode(text)
        print(e.tokens, "|", tok.decode(e.ids))


if __name__ == "__main__":
    main(*(sys.argv[1:] or [os.path.join(HERE, "model", "tokenizer.json")]))
