"""Synthetic scenes with questions and short answers, in eight families, one for each
EmberNet expert domain.  Every scene is a function of (split, family, index) only.

    image, qas = make_scene("train", family, index)
    qas: list of (weight, question, answer); the weight says how often to ask it.
"""
import math
import random

from PIL import Image, ImageDraw, ImageFont

SIZE = 128
FAMILIES = [
    "vision_ocr", "vision_diagram", "code_math_chart", "code_math_formula",
    "spatial_scene", "spatial_reasoning", "agentic_knowledge", "agentic_reasoning",
]
COLORS = {
    "red": (214, 34, 34), "green": (34, 150, 50), "blue": (36, 70, 214),
    "yellow": (240, 208, 20), "orange": (242, 128, 16), "purple": (134, 36, 176),
    "black": (24, 24, 24),
}
SHAPES = ["circle", "square", "triangle", "star", "cross"]
PLURAL = {"circle": "circles", "square": "squares", "triangle": "triangles",
          "star": "stars", "cross": "crosses"}
WORDS = """ACT AIR ANT APE ARM ART BAG BALL BAND BANK BAR BARN BAT BATH BEAR BED BEE BELL BELT BIKE
BIRD BLUE BOAT BONE BOOK BOOT BOWL BOX BOY BREAD BUS CAB CAKE CALL CAMP CAP CAR CARD CART CAT CAVE
CHAIR CITY CLAY CLUB COAL COAT CODE COIN COLD COOK CORN COW CROW CUBE CUP DATA DAY DEER DESK DISH
DOG DOOR DOVE DRUM DUCK DUST EAR EAST EGG ENTER EXIT EYE FACE FAN FARM FAST FERN FIRE FISH FIVE FLAG
FLOOR FLY FOOD FOOT FORK FOUR FOX FREE FROG FUEL FUN GAME GATE GIFT GIRL GLASS GO GOAT GOLD GOOD
GRASS GREEN HAND HAT HELP HERO HILL HOME HORSE HOT HOTEL HOUR HOUSE ICE INK IRON JAM JAR JAZZ JET
JOB JUMP KEY KING KITE KIWI LAKE LAMP LEAF LEFT LEG LIFT LIGHT LION LOCK LOG LOVE MAIN MAP MARS MENU
MILK MINT MOON MOUSE MOVE NECK NEST NET NEW NIGHT NINE NOON NORTH NOSE NOTE OAK OFF OIL OPEN OVEN
OWL PARK PATH PEAR PEN PIE PIG PIN PINK PIZZA PLAN PLANE PLUM POLE POND POOL PORT POST PULL PUSH
QUEEN QUIET QUIZ RADIO RAIN RED RICE RING RIVER ROAD ROBOT ROCK ROOF ROOM ROSE RUN SAFE SALE SALT
SAND SEA SEED SHIP SHOE SHOP SIGN SILK SIX SKI SKY SLOW SNOW SOAP SOUP SOUTH STAR STOP STORE SUN
SWAN TAXI TEA TEN TENT TIGER TIME TOE TOWN TOY TRAIN TREE TRUCK TURN UNIT VAN VASE VIEW VINE VOTE
WALK WALL WATER WAVE WAX WEST WHEEL WIND WINE WOLF WOOD WORLD YARD YEAR YES ZEBRA ZERO ZONE ZOO
""".split()
WORDS = [w for w in WORDS if 3 <= len(w) <= 5]

_FONTS = {}
MARKS = []  # (what, x, y, colour) of everything drawn in the last scene: labels for the visual pre-training
GLYPHS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-=?"


def font(size):
    if size not in _FONTS:
        _FONTS[size] = ImageFont.load_default(size=size)
    return _FONTS[size]


def jitter(rng, rgb, amount=10):
    return tuple(max(0, min(255, c + rng.randint(-amount, amount))) for c in rgb)


def background(rng):
    base = rng.randint(236, 255)
    return tuple(max(0, min(255, base - rng.randint(0, 14))) for _ in range(3))


def canvas(rng):
    im = Image.new("RGB", (SIZE, SIZE), background(rng))
    return im, ImageDraw.Draw(im)


def glyph(d, cx, cy, text, size, fill, bold=1):
    MARKS.append((text, cx, cy, "black"))
    d.text((cx, cy), text, font=font(size), fill=fill, anchor="mm", stroke_width=bold, stroke_fill=fill)


def draw_shape(d, kind, cx, cy, r, fill, color):
    MARKS.append((kind, cx, cy, color))
    if kind == "circle":
        d.ellipse((cx - r, cy - r, cx + r, cy + r), fill=fill)
    elif kind == "square":
        s = r * 0.9
        d.rectangle((cx - s, cy - s, cx + s, cy + s), fill=fill)
    elif kind == "triangle":
        d.polygon([(cx, cy - r), (cx - r, cy + r * 0.85), (cx + r, cy + r * 0.85)], fill=fill)
    elif kind == "star":
        pts = []
        for k in range(10):
            rad = r * 1.12 if k % 2 == 0 else r * 0.45
            a = -math.pi / 2 + k * math.pi / 5
            pts.append((cx + rad * math.cos(a), cy + rad * math.sin(a)))
        d.polygon(pts, fill=fill)
    else:  # cross
        w = r * 0.36
        d.rectangle((cx - r, cy - w, cx + r, cy + w), fill=fill)
        d.rectangle((cx - w, cy - r, cx + w, cy + r), fill=fill)


def arrow(d, x0, y0, x1, y1, fill, width=4, head=11):
    a = math.atan2(y1 - y0, x1 - x0)
    bx, by = x1 - head * 0.8 * math.cos(a), y1 - head * 0.8 * math.sin(a)
    d.line((x0, y0, bx, by), fill=fill, width=width)
    px, py = -math.sin(a), math.cos(a)
    d.polygon([(x1, y1),
               (x1 - head * math.cos(a) + px * head * 0.62, y1 - head * math.sin(a) + py * head * 0.62),
               (x1 - head * math.cos(a) - px * head * 0.62, y1 - head * math.sin(a) - py * head * 0.62)],
              fill=fill)


def yes(flag):
    return "yes" if flag else "no"


def other(rng, items, *but):
    return rng.choice([i for i in items if i not in but])


# --- 0 vision_ocr ---------------------------------------------------------------------------
def ocr(rng):
    im, d = canvas(rng)
    if rng.random() < 0.62:
        text, unit = rng.choice(WORDS), "letter"
        if rng.random() < 0.12:
            text = "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randint(3, 4)))
    else:
        n = rng.randint(2, 4)
        text, unit = str(rng.randint(10 ** (n - 1), 10 ** n - 1)), "digit"
    pitch = 23
    cy = rng.choice([40, 56, 72, 88]) + rng.randint(-2, 2)
    x0 = 64 - pitch * (len(text) - 1) / 2 + rng.randint(-2, 2)
    ink = jitter(rng, rng.choice([(20, 20, 20), (20, 20, 20), (20, 40, 130), (140, 20, 20), (10, 90, 40)]), 12)
    if rng.random() < 0.5:  # a sign around the text
        h = 24
        d.rectangle((4, cy - h, 123, cy + h), fill=jitter(rng, rng.choice([(255, 255, 255), (250, 240, 190), (205, 230, 250)]), 5),
                    outline=ink, width=2)
    for k, ch in enumerate(text):
        glyph(d, x0 + k * pitch, cy, ch, 30, ink)
    qas = [(3, rng.choice(["What does the sign say?", "Read the text."]), text),
           (1, f"What is the first {unit}?", text[0]),
           (1, f"What is the last {unit}?", text[-1]),
           (1, f"How many {unit}s are there?", str(len(text)))]
    return im, qas


# --- 1 vision_diagram -----------------------------------------------------------------------
def diagram(rng):
    im, d = canvas(rng)
    letters = rng.sample("ABCDEFGH", 4)
    slots = [(33, 33), (95, 33), (33, 95), (95, 95)]
    n = 2 if rng.easy else rng.choice([2, 3, 3, 4])
    used = rng.sample(range(4), n)
    at = {}
    boxes = []
    for s, ch in zip(used, letters):
        cx, cy = slots[s][0] + rng.randint(-2, 2), slots[s][1] + rng.randint(-2, 2)
        at[ch] = (cx, cy)
        boxes.append(ch)
    arrows = {}
    order = boxes[:]
    rng.shuffle(order)
    for k in range(min(len(order) - 1, rng.choice([1, 1, 2]))):
        arrows[order[k]] = order[k + 1]
    ink = jitter(rng, rng.choice([(20, 20, 20), (40, 40, 120), (120, 30, 30)]), 12)
    for a, b in arrows.items():
        (ax, ay), (bx, by) = at[a], at[b]
        ang = math.atan2(by - ay, bx - ax)
        f = 22 / max(abs(math.cos(ang)), abs(math.sin(ang)))
        arrow(d, ax + math.cos(ang) * (f - 3), ay + math.sin(ang) * (f - 3),
              bx - math.cos(ang) * f, by - math.sin(ang) * f, ink, width=4, head=13)
    fill = jitter(rng, rng.choice([(255, 255, 255), (255, 236, 190), (200, 226, 250), (210, 240, 205)]), 5)
    for ch, (cx, cy) in at.items():
        h = 18
        d.rectangle((cx - h, cy - h, cx + h, cy + h), fill=fill, outline=(20, 20, 20), width=2)
        glyph(d, cx, cy, ch, 28, (20, 20, 20))
    a, c, x = (rng.choice(list(arrows)) for _ in range(3))
    b, y = arrows[a], arrows[x]
    if rng.random() < 0.5:
        x, y = y, x
    qas = [(3, f"What does {a} point to?", b),
           (2, f"What points to {arrows[c]}?", c),
           (1, "How many boxes are there?", str(n)),
           (1, f"Does {x} point to {y}?", yes(arrows.get(x) == y)),
           (0, "List the boxes.", " ".join(ch for _, ch in sorted(zip(used, boxes))))]
    return im, qas


# --- 2 code_math_chart ----------------------------------------------------------------------
def chart(rng):
    im, d = canvas(rng)
    n = rng.randint(2, 3) if rng.easy else rng.randint(2, 5)
    names = rng.sample([c for c in COLORS if c != "black"], n)
    while True:
        hs = [rng.randint(12, 96) for _ in range(n)]
        srt = sorted(hs)
        if all(b - a >= 10 for a, b in zip(srt, srt[1:])):
            break
    d.line((10, 12, 10, 116), fill=(30, 30, 30), width=2)
    d.line((10, 116, 120, 116), fill=(30, 30, 30), width=2)
    pitch = 104 / n
    w = min(16, pitch - 6) if n > 3 else rng.randint(16, 24)
    for k, (c, h) in enumerate(zip(names, hs)):
        cx = 14 + pitch * (k + 0.5)
        d.rectangle((cx - w / 2, 115 - h, cx + w / 2, 115), fill=jitter(rng, COLORS[c]))
        MARKS.append(("bar", cx, 115 - h, c))
    tall = names[hs.index(max(hs))]
    short = names[hs.index(min(hs))]
    a, b = rng.sample(range(n), 2)
    qas = [(2, rng.choice(["Which bar is the tallest?", "What color is the tallest bar?"]), tall),
           (2, rng.choice(["Which bar is the shortest?", "What color is the shortest bar?"]), short),
           (2, "How many bars are there?", str(n)),
           (1, f"Is the {names[a]} bar taller than the {names[b]} bar?", yes(hs[a] > hs[b])),
           (0, "List the bars.", " ".join(names))]
    return im, qas


# --- 3 code_math_formula --------------------------------------------------------------------
def formula(rng):
    im, d = canvas(rng)
    if rng.random() < 0.6:
        a, b = rng.randint(0, 9), rng.randint(0, 9)
        op, res = "+", a + b
    else:
        a = rng.randint(0, 9)
        b = rng.randint(0, a)
        op, res = "-", a - b
    ink = jitter(rng, rng.choice([(20, 20, 20), (20, 40, 130), (140, 20, 20), (10, 90, 40)]), 12)
    cy = rng.choice([40, 56, 72, 88]) + rng.randint(-2, 2)
    x0 = 18 + rng.randint(-2, 2)
    if rng.random() < 0.4:
        d.rectangle((3, cy - 24, 124, cy + 24), fill=jitter(rng, rng.choice([(255, 255, 255), (250, 240, 190), (205, 230, 250)]), 5),
                    outline=ink, width=2)
    for k, ch in enumerate([str(a), op, str(b), "=", "?"]):
        glyph(d, x0 + k * 23, cy, ch, 32, ink)
    qas = [(4, rng.choice(["What is the result?", "Solve it."]), str(res)),
           (1, "Read the formula.", f"{a}{op}{b}"),
           (1, "What is the first number?", str(a)),
           (1, "What is the second number?", str(b))]
    return im, qas


# --- 4 spatial_scene ------------------------------------------------------------------------
def place(rng, n, gap, lo=22, hi=106):
    while True:
        pts = [(rng.randint(lo, hi), rng.randint(lo, hi)) for _ in range(n)]
        if all(max(abs(p[0] - q[0]), abs(p[1] - q[1])) >= gap for i, p in enumerate(pts) for q in pts[:i]):
            return pts


def pair(rng, kinds, names):
    """Two objects clearly apart along one axis; returns [(kind, colour, x, y)] in reading order and the relation."""
    horizontal = rng.random() < 0.5
    lo, hi = rng.randint(22, 46), rng.randint(84, 106)
    c = rng.randint(34, 94)
    c2 = max(22, min(106, c + rng.randint(-12, 12)))
    p = [(lo, c), (hi, c2)] if horizontal else [(c, lo), (c2, hi)]
    return [(kinds[i], names[i], *p[i]) for i in range(2)], ("left of" if horizontal else "above")


def article(word):
    return "an" if word[0] in "aeiou" else "a"


def scene(rng):
    im, d = canvas(rng)
    n = rng.choice([1, 1, 1, 2] if rng.easy else [1, 2, 2, 2, 3])
    kinds, names = rng.sample(SHAPES, n), rng.sample(list(COLORS), n)
    caption = None
    if n == 1:
        objs = [(kinds[0], names[0], rng.randint(30, 98), rng.randint(30, 98))]
        caption = f"{article(names[0])} {names[0]} {kinds[0]}"
    elif n == 2:
        objs, rel = pair(rng, kinds, names)
        caption = (f"{article(names[0])} {names[0]} {kinds[0]} {rel} "
                   f"{article(names[1])} {names[1]} {kinds[1]}")
    else:
        objs = [(k, c, x, y) for k, c, (x, y) in zip(kinds, names, place(rng, 3, 42))]
    for k, c, x, y in objs:
        draw_shape(d, k, x, y, rng.randint(14, 19), jitter(rng, COLORS[c]), c)
    i, j = rng.randrange(n), rng.randrange(n)
    there = rng.random() < 0.5
    k = rng.choice(kinds) if there else other(rng, SHAPES, *kinds)
    qas = [(2, rng.choice([f"What color is the {kinds[i]}?", f"What is the color of the {kinds[i]}?"]), names[i]),
           (2, f"What shape is {names[j]}?", kinds[j]),
           (1, f"Is there a {k}?", yes(there))]
    if caption:
        qas.append((3, rng.choice(["Describe the image.", "What is in the image?"]), caption))
    return im, qas


# --- 5 spatial_reasoning --------------------------------------------------------------------
def spatial(rng):
    im, d = canvas(rng)
    if rng.random() < 0.5:
        kinds, names = rng.sample(SHAPES, 2), rng.sample(list(COLORS), 2)
        objs, rel = pair(rng, kinds, names)
        for k, c, x, y in objs:
            draw_shape(d, k, x, y, rng.randint(14, 19), jitter(rng, COLORS[c]), c)
        back = {"left of": "right of", "above": "below"}[rel]
        opts = []
        for a, b, fwd in ((kinds[0], kinds[1], rel), (kinds[1], kinds[0], back)):
            wrong = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}[fwd]
            opts.append((f"Is the {a} {fwd} the {b}?", "yes"))
            opts.append((f"Is the {a} {wrong} the {b}?", "no"))
        q1, q2 = rng.sample(opts, 2)
        where = (f"What is {rel} the {kinds[1]}?", kinds[0]) if rng.random() < 0.5 else \
                (f"What is {back} the {kinds[0]}?", kinds[1])
        ask = rng.randrange(2)
        return im, [(2, *q1), (2, *q2), (2, *where),
                    (0, "Describe the image.", f"{article(names[0])} {names[0]} {kinds[0]} {rel} {article(names[1])} {names[1]} {kinds[1]}"),
                    (1, f"Where is the {kinds[ask]}?", {("left of", 0): "left", ("left of", 1): "right",
                                                         ("above", 0): "top", ("above", 1): "bottom"}[(rel, ask)])]
    total = rng.randint(1, 3) if rng.easy else rng.randint(1, 6)
    types = rng.sample(SHAPES, rng.choice([1, 2, 2, 3]))
    cols = rng.sample(list(COLORS), rng.choice([1, 2, 3]))
    cells = rng.sample([(x, y) for x in (24, 64, 104) for y in (24, 64, 104)], total)
    objs = []
    for x, y in cells:
        k, c = rng.choice(types), rng.choice(cols)
        objs.append((k, c))
        draw_shape(d, k, x + rng.randint(-4, 4), y + rng.randint(-4, 4), rng.randint(13, 16), jitter(rng, COLORS[c]), c)
    present = [k for k, _ in objs]
    k = rng.choice(present) if rng.random() < 0.8 else other(rng, SHAPES, *types) if len(types) < len(SHAPES) else rng.choice(types)
    c = rng.choice([c for _, c in objs]) if rng.random() < 0.8 else other(rng, list(COLORS), *cols)
    return im, [(2, f"How many {PLURAL[k]} are there?", str(present.count(k))),
                (2, "How many shapes are there?", str(total)),
                (1, f"How many {c} shapes are there?", str(sum(cc == c for _, cc in objs)))]


# --- 6 agentic_knowledge --------------------------------------------------------------------
def knowledge(rng):
    im, d = canvas(rng)
    cx, cy = 64 + rng.randint(-8, 8), 64 + rng.randint(-4, 4)
    kind = rng.choice(["light", "battery", "thermo", "clock"])
    if kind == "light":
        on = rng.randrange(3)
        d.rounded_rectangle((cx - 19, cy - 50, cx + 19, cy + 50), 8, fill=(50, 50, 54))
        for k, name in enumerate(["red", "yellow", "green"]):
            y = cy - 32 + 32 * k
            rgb = jitter(rng, {"red": (240, 30, 30), "yellow": (250, 215, 20), "green": (30, 205, 70)}[name]) if k == on else (90, 90, 92)
            d.ellipse((cx - 13, y - 13, cx + 13, y + 13), fill=rgb)
        return im, [(3, "May I go?", ["no", "slow down", "yes"][on]),
                    (1, "What color is the light?", ["red", "yellow", "green"][on]),
                    (2, "What should I do?", ["stop", "slow down", "go"][on])]
    if kind == "battery":
        lev = rng.randrange(3)
        frac = [rng.uniform(0.06, 0.2), rng.uniform(0.42, 0.58), rng.uniform(0.86, 1.0)][lev]
        d.rectangle((cx - 46, cy - 22, cx + 42, cy + 22), outline=(30, 30, 30), width=3)
        d.rectangle((cx + 43, cy - 9, cx + 49, cy + 9), fill=(30, 30, 30))
        rgb = [COLORS["red"], COLORS["orange"], COLORS["green"]][lev] if rng.random() < 0.6 else rng.choice([COLORS["green"], COLORS["blue"], COLORS["black"]])
        d.rectangle((cx - 41, cy - 17, cx - 41 + 78 * frac, cy + 17), fill=jitter(rng, rgb))
        return im, [(3, "Is the battery low?", yes(lev == 0)),
                    (2, "How full is the battery?", ["low", "half", "full"][lev]),
                    (1, "Should I charge it?", yes(lev == 0))]
    if kind == "thermo":
        lev = rng.randrange(3)
        frac = [rng.uniform(0.08, 0.22), rng.uniform(0.45, 0.58), rng.uniform(0.82, 0.98)][lev]
        d.rounded_rectangle((cx - 9, cy - 52, cx + 9, cy + 40), 9, fill=(250, 250, 250), outline=(60, 60, 60), width=2)
        red = jitter(rng, (220, 30, 30))
        d.ellipse((cx - 16, cy + 24, cx + 16, cy + 56), fill=red, outline=(60, 60, 60), width=2)
        d.rectangle((cx - 5, cy + 30 - 78 * frac, cx + 5, cy + 40), fill=red)
        for k in range(6):
            y = cy - 44 + 14 * k
            d.line((cx + 12, y, cx + 20, y), fill=(60, 60, 60), width=2)
        return im, [(2, "Is it hot?", yes(lev == 2)),
                    (2, "How warm is it?", ["cold", "warm", "hot"][lev]),
                    (2, "Do I need a coat?", yes(lev == 0))]
    h = rng.randint(1, 12)
    d.ellipse((cx - 50, cy - 50, cx + 50, cy + 50), fill=(252, 252, 250), outline=(30, 30, 30), width=3)
    for k in range(12):
        a = math.pi * k / 6
        r0 = 38 if k % 3 == 0 else 42
        d.line((cx + r0 * math.sin(a), cy - r0 * math.cos(a), cx + 46 * math.sin(a), cy - 46 * math.cos(a)),
               fill=(30, 30, 30), width=3 if k % 3 == 0 else 2)
    a = math.pi * h / 6
    d.line((cx, cy, cx, cy - 38), fill=(60, 60, 60), width=3)
    red = jitter(rng, (200, 30, 30))
    arrow(d, cx, cy, cx + 33 * math.sin(a), cy - 33 * math.cos(a), red, width=6, head=13)
    d.ellipse((cx - 4, cy - 4, cx + 4, cy + 4), fill=(30, 30, 30))
    hh = h if rng.random() < 0.5 else other(rng, range(1, 13), h)
    return im, [(3, rng.choice(["What time is it?", "What hour is it?"]), str(h)),
                (1, f"Is it {hh} o'clock?", yes(hh == h))]


# --- 7 agentic_reasoning --------------------------------------------------------------------
TERRAIN = {"water": "boat", "sky": "drone", "stairs": "robot with legs", "road": "robot with wheels"}


def reasoning(rng):
    im, d = canvas(rng)
    if rng.random() < 0.45:
        t = rng.choice(list(TERRAIN))
        if t == "water":
            top = rng.randint(30, 56)
            d.rectangle((0, top, 128, 128), fill=jitter(rng, (40, 110, 205), 14))
            for y in range(top + 12, 126, 16):
                ph, col = rng.uniform(0, 6), jitter(rng, (190, 220, 250), 8)
                d.line([(x, y + 4 * math.sin(x / 6 + ph)) for x in range(0, 129, 3)], fill=col, width=3)
        elif t == "sky":
            d.rectangle((0, 0, 128, 128), fill=jitter(rng, (140, 200, 250), 12))
            for _ in range(rng.randint(2, 4)):
                x, y, r = rng.randint(20, 108), rng.randint(20, 108), rng.randint(10, 15)
                for dx, dy in ((-r, 3), (0, -4), (r, 3)):
                    d.ellipse((x + dx - r, y + dy - r * 0.8, x + dx + r, y + dy + r * 0.8), fill=(255, 255, 255))
        elif t == "stairs":
            n, flip = rng.randint(4, 6), rng.random() < 0.5
            fill, w = jitter(rng, (150, 140, 130), 14), 112 / n
            for k in range(n):
                x0 = 8 + k * w
                y = 112 - (k + 1) * (88 / n)
                if flip:
                    x0 = 120 - (k + 1) * w
                d.rectangle((x0, y, x0 + w, 118), fill=fill, outline=(50, 50, 50), width=2)
        else:
            d.rectangle((0, 0, 128, 128), fill=jitter(rng, (120, 180, 90), 14))
            cx, w = 64 + rng.randint(-12, 12), rng.randint(34, 44)
            d.polygon([(cx - w * 0.5, 0), (cx + w * 0.5, 0), (cx + w, 128), (cx - w, 128)], fill=jitter(rng, (80, 80, 84)))
            for y in range(4, 128, 28):
                d.rectangle((cx - 3, y, cx + 3, y + 14), fill=(250, 250, 240))
        ask = rng.choice(["boat", "drone"])
        return im, [(3, "Which robot should go?", TERRAIN[t]),
                    (1, "What terrain is this?", t),
                    (1, f"Can the {ask} go?", yes(TERRAIN[t] == ask or (ask == "drone" and t == "sky")))]
    n = rng.choice([3, 4, 4])
    spots = [(36, 36), (92, 36), (36, 92), (92, 92)]
    spots = rng.sample(spots, n) if n < 4 else spots
    k, k2 = rng.sample(SHAPES, 2)
    c, c2 = rng.sample(list(COLORS), 2)
    odd = rng.randrange(n)
    seen = []
    mode = rng.choice(["same", "color", "shape", "color", "shape", "both"])
    for i, (x, y) in enumerate(spots):
        kind = k2 if i == odd and mode in ("shape", "both") else k
        col = c2 if i == odd and mode in ("color", "both") else c
        seen.append((y, x, col, kind))
        draw_shape(d, kind, x + rng.randint(-5, 5), y + rng.randint(-5, 5), rng.randint(14, 18), jitter(rng, COLORS[col]), col)
    same_c, same_k = mode in ("same", "shape"), mode in ("same", "color")
    return im, [(2, "Are all shapes the same color?", yes(same_c)),
                (2, "Are all shapes the same shape?", yes(same_k)),
                (1, "Which color is different?", c2 if not same_c else "none"),
                (1, "Which shape is different?", k2 if not same_k else "none"),
                (0, "List the colors.", " ".join(o[2] for o in sorted(seen))),
                (0, "List the shapes.", " ".join(o[3] for o in sorted(seen)))]


MAKERS = [ocr, diagram, chart, formula, scene, spatial, knowledge, reasoning]


def make_scene(split, family, index, easy=False):
    """easy: simpler scenes (few objects) for the first part of the training."""
    rng = random.Random(f"{split}-{family}-{index}")
    rng.easy = easy
    MARKS.clear()
    return MAKERS[family](rng)


def pick(qas, rng, count, extra=0.0):
    """Draw `count` questions by weight; without repetition while possible.  Questions of weight 0 are
    for training only: they are asked with the weight `extra`."""
    qas = [(w or extra, q, a) for w, q, a in qas if w or extra]
    left, out = list(qas), []
    while len(out) < count:
        if not left:
            left = list(qas)
        x = rng.uniform(0, sum(w for w, _, _ in left))
        for i, (w, q, a) in enumerate(left):
            x -= w
            if x <= 0 or i == len(left) - 1:
                out.append((q, a))
                left.pop(i)
                break
    return out


if __name__ == "__main__":
    sheet = Image.new("RGB", (8 * 132, 8 * 132), (90, 90, 90))
    for f in range(8):
        for i in range(8):
            im, qas = make_scene("train", f, i)
            sheet.paste(im, (i * 132 + 2, f * 132 + 2))
            if i < 3:
                print(FAMILIES[f], i, qas)
    sheet.save("sheet.png")
