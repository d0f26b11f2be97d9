"""Scenes as tensors, and questions as token ids in the engine's prompt template."""
import os

import torch
from tokenizers import Tokenizer

import shapes

HERE = os.path.dirname(os.path.abspath(__file__))
TEMPLATE = "User: <image>\n{prompt}\nAssistant:"


class Prompts:
    """`prefix` (with bos), then `question`, then `answer` (with eos): together the encoded template."""

    def __init__(self):
        self.tok = Tokenizer.from_file(os.path.join(HERE, "model", "tokenizer.json"))
        self.prefix = self.tok.encode("User: <image>\n").ids
        self.cache = {}

    def ids(self, text):
        if text not in self.cache:
            self.cache[text] = self.tok.encode(text, add_special_tokens=False).ids
        return self.cache[text]

    def question(self, q):
        return self.ids(f"{q}\nAssistant:")

    def answer(self, a):
        return self.ids(f" {a}") + [2]


def pixels(im):
    """A picture as bytes [height, width, 3]."""
    return torch.frombuffer(bytearray(im.tobytes()), dtype=torch.uint8).view(shapes.SIZE, shapes.SIZE, 3)


def augment(x, dx, dy):
    """Move a picture by whole pixels, so that no drawing position is special."""
    return torch.roll(x, (dy, dx), (0, 1))


def to_pixels(images):
    """Byte pictures to the model's input [n, 3, height, width] in -1..1."""
    return (torch.stack(images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
