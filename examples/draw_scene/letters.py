"""Writes letters.png: the letters of shapes.py as Pillow draws them, white on black, for letters.rs to stamp.
A row for each size, a cell of 36x36 pixels for each letter, around the cell's centre.

The font is Pillow's default, Aileron Regular by Sora Sagano (CC0, "No Rights Reserved").
"""
import sys
from pathlib import Path

from PIL import Image, ImageDraw

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "shapes"))
import shapes  # noqa: E402

SIZES = [28, 30, 32]
CELL = 36

sheet = Image.new("L", (CELL * len(shapes.GLYPHS), CELL * len(SIZES)))
for row, size in enumerate(SIZES):
    for column, text in enumerate(shapes.GLYPHS):
        cell = Image.new("L", (CELL, CELL))
        shapes.glyph(ImageDraw.Draw(cell), CELL // 2, CELL // 2, text, size, 255)
        left, top, right, bottom = cell.getbbox()
        assert 0 < left and 0 < top and right < CELL and bottom < CELL, f"{text} in size {size} leaves its cell"
        sheet.paste(cell, (CELL * column, CELL * row))
sheet.save(HERE / "letters.png", optimize=True)
