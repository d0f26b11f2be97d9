//! Families of letters, digits and bars: text, diagram, chart, formula.

use crate::canvas::{Canvas, Ink, Point, around};
use crate::dice::Dice;
use crate::letters::letter;
use crate::scene::{COLORS, Color, Question, ask, shade, yes};

const WORDS: &str = "
    ACT AIR ANT APE ARM ART BAG BALL BAND BANK BAR BARN BAT BATH BEAR BED BEE BELL BELT BIKE BIRD BLUE BOAT BONE BOOK
    BOOT BOWL BOX BOY BREAD BUS CAB CAKE CALL CAMP CAP CAR CARD CART CAT CAVE CHAIR CITY CLAY CLUB COAL COAT CODE COIN
    COLD COOK CORN COW CROW CUBE CUP DATA DAY DEER DESK DISH DOG DOOR DOVE DRUM DUCK DUST EAR EAST EGG ENTER EXIT EYE
    FACE FAN FARM FAST FERN FIRE FISH FIVE FLAG FLOOR FLY FOOD FOOT FORK FOUR FOX FREE FROG FUEL FUN GAME GATE GIFT
    GIRL GLASS GOAT GOLD GOOD GRASS GREEN HAND HAT HELP HERO HILL HOME HORSE HOT HOTEL HOUR HOUSE ICE INK IRON JAM JAR
    JAZZ JET JOB JUMP KEY KING KITE KIWI LAKE LAMP LEAF LEFT LEG LIFT LIGHT LION LOCK LOG LOVE MAIN MAP MARS MENU MILK
    MINT MOON MOUSE MOVE NECK NEST NET NEW NIGHT NINE NOON NORTH NOSE NOTE OAK OFF OIL OPEN OVEN OWL PARK PATH PEAR
    PEN PIE PIG PIN PINK PIZZA PLAN PLANE PLUM POLE POND POOL PORT POST PULL PUSH QUEEN QUIET QUIZ RADIO RAIN RED RICE
    RING RIVER ROAD ROBOT ROCK ROOF ROOM ROSE RUN SAFE SALE SALT SAND SEA SEED SHIP SHOE SHOP SIGN SILK SIX SKI SKY
    SLOW SNOW SOAP SOUP SOUTH STAR STOP STORE SUN SWAN TAXI TEA TEN TENT TIGER TIME TOE TOWN TOY TRAIN TREE TRUCK TURN
    UNIT VAN VASE VIEW VINE VOTE WALK WALL WATER WAVE WAX WEST WHEEL WIND WINE WOLF WOOD WORLD YARD YEAR YES ZEBRA
    ZERO ZONE ZOO
";

const INKS: [Ink; 4] = [[20, 20, 20], [20, 40, 130], [140, 20, 20], [10, 90, 40]];
const PAPERS: [Ink; 3] = [[255, 255, 255], [250, 240, 190], [205, 230, 250]];

/// Letters in a row, 23 pixels apart, perhaps on a sign: `boxed` is the sign's left and right edge.
fn write(
    canvas: &mut Canvas,
    dice: &mut Dice,
    text: &str,
    left: f64,
    size: u32,
    ink: Ink,
    boxed: Option<(f64, f64)>,
) -> Result<(), char> {
    let y = f64::from(dice.choose(&[40, 56, 72, 88])) + dice.whole(-2, 2);
    if let Some((from, to)) = boxed {
        let paper = dice.choose(&PAPERS);
        canvas.rectangle([from, y - 24.0, to, y + 24.0], shade(dice, paper, 5));
        canvas.frame([from, y - 24.0, to, y + 24.0], 2.0, ink);
    }
    for (k, c) in (0..).zip(text.chars()) {
        letter(canvas, (left + f64::from(k) * 23.0, y), c, size, ink).ok_or(c)?;
    }
    Ok(())
}

/// A word or a number, perhaps on a sign.
pub fn text(canvas: &mut Canvas, dice: &mut Dice) -> Result<Vec<Question>, char> {
    let (text, unit) = if dice.chance(0.62) {
        let words: Vec<&str> = WORDS.split_whitespace().collect();
        let word = dice.choose(&words).to_owned();
        let alphabet: Vec<char> = ('A'..='Z').collect();
        let noise: String = (0..dice.between(3, 4)).map(|_| dice.choose(&alphabet)).collect();
        (if dice.chance(0.12) { noise } else { word }, "letter")
    } else {
        let (low, high) = dice.choose(&[(10, 99), (100, 999), (1000, 9999)]);
        (dice.between(low, high).to_string(), "digit")
    };
    let count = text.len();
    let left = 64.0 - 23.0 * (count - 1) as f64 / 2.0 + dice.whole(-2, 2);
    // Black twice: it is the most frequent.
    let ink = dice.choose(&[INKS[0], INKS[0], INKS[1], INKS[2], INKS[3]]);
    let ink = shade(dice, ink, 12);
    let boxed = dice.chance(0.5).then_some((4.0, 123.0));
    write(canvas, dice, &text, left, 30, ink, boxed)?;
    let read = dice.choose(&["What does the sign say?", "Read the text."]);
    Ok(vec![
        ask(3, read, text.as_str()),
        ask(1, format!("What is the first {unit}?"), &text[..1]),
        ask(1, format!("What is the last {unit}?"), &text[count - 1..]),
        ask(1, format!("How many {unit}s are there?"), count.to_string()),
    ])
}

/// A sum or a difference of two digits, perhaps on a sign.
pub fn formula(canvas: &mut Canvas, dice: &mut Dice) -> Result<Vec<Question>, char> {
    let a = dice.between(0, 9);
    let (op, b, result) = if dice.chance(0.6) {
        let b = dice.between(0, 9);
        ('+', b, a + b)
    } else {
        let b = dice.between(0, a);
        ('-', b, a - b)
    };
    let ink = dice.choose(&INKS);
    let ink = shade(dice, ink, 12);
    let left = 18.0 + dice.whole(-2, 2);
    let boxed = dice.chance(0.4).then_some((3.0, 124.0));
    write(canvas, dice, &format!("{a}{op}{b}=?"), left, 32, ink, boxed)?;
    Ok(vec![
        ask(4, dice.choose(&["What is the result?", "Solve it."]), result.to_string()),
        ask(1, "Read the formula.", format!("{a}{op}{b}")),
        ask(1, "What is the first number?", a.to_string()),
        ask(1, "What is the second number?", b.to_string()),
    ])
}

/// An arrow from near the border of the box around `a` to that of the box around `b`.
fn connect(canvas: &mut Canvas, a: Point, b: Point, ink: Ink) {
    let angle = libm::atan2(b.1 - a.1, b.0 - a.0);
    let (cos, sin) = (libm::cos(angle), libm::sin(angle));
    let far = 22.0 / cos.abs().max(sin.abs());
    let from = (a.0 + cos * (far - 3.0), a.1 + sin * (far - 3.0));
    canvas.arrow(from, (b.0 - cos * far, b.1 - sin * far), 4.0, 13.0, ink);
}

/// Boxes with letters, and a chain of arrows between some of them.
pub fn diagram(canvas: &mut Canvas, dice: &mut Dice) -> Result<Vec<Question>, char> {
    let n = dice.choose(&[2, 3, 3, 4]);
    let letters = dice.sample(&['A', 'B', 'C', 'D', 'E', 'F', 'G', 'H'], n);
    // Slots from left to right, from top to bottom.
    let slots = dice.sample(&[(33.0, 33.0), (95.0, 33.0), (33.0, 95.0), (95.0, 95.0)], n);
    let at: Vec<Point> = slots.iter().map(|s| (s.0 + dice.whole(-2, 2), s.1 + dice.whole(-2, 2))).collect();
    // Boxes are in random order already, so the chain may follow it.
    let arrows: Vec<(usize, usize)> = (0..dice.choose(&[1, 1, 2]).min(n - 1)).map(|k| (k, k + 1)).collect();

    let ink = dice.choose(&[[20, 20, 20], [40, 40, 120], [120, 30, 30]]);
    let ink = shade(dice, ink, 12);
    for &(a, b) in &arrows {
        connect(canvas, at[a], at[b], ink);
    }
    let paper = dice.choose(&[[255, 255, 255], [255, 236, 190], [200, 226, 250], [210, 240, 205]]);
    let paper = shade(dice, paper, 5);
    for (&place, &c) in at.iter().zip(&letters) {
        canvas.rectangle(around(place, 18.0, 18.0), paper);
        canvas.frame(around(place, 18.0, 18.0), 2.0, [20, 20, 20]);
        letter(canvas, place, c, 28, [20, 20, 20]).ok_or(c)?;
    }

    let [onto, into, whether] = [0; 3].map(|_| dice.choose(&arrows));
    let (x, y) = if dice.chance(0.5) { whether } else { (whether.1, whether.0) };
    let mut listed: Vec<usize> = (0..n).collect();
    listed.sort_by(|&a, &b| slots[a].1.total_cmp(&slots[b].1).then(slots[a].0.total_cmp(&slots[b].0)));
    let list: Vec<String> = listed.into_iter().map(|k| letters[k].to_string()).collect();
    Ok(vec![
        ask(3, format!("What does {} point to?", letters[onto.0]), letters[onto.1]),
        ask(2, format!("What points to {}?", letters[into.1]), letters[into.0]),
        ask(1, "How many boxes are there?", n.to_string()),
        ask(1, format!("Does {} point to {}?", letters[x], letters[y]), yes(arrows.contains(&(x, y)))),
        ask(0, "List the boxes.", list.join(" ")),
    ])
}

/// Bars of different colours and clearly different heights.
pub fn chart(canvas: &mut Canvas, dice: &mut Dice) -> Result<Vec<Question>, char> {
    let n = dice.between(2, 5) as usize;
    let colors: Vec<Color> = dice.sample(&COLORS[..6], n);
    let heights = loop {
        let heights: Vec<i32> = (0..n).map(|_| dice.between(12, 96)).collect();
        let mut sorted = heights.clone();
        sorted.sort_unstable();
        if sorted.windows(2).all(|w| w[1] - w[0] >= 10) {
            break heights;
        }
    };
    canvas.line(&[(10.0, 12.0), (10.0, 116.0)], 2.0, [30, 30, 30]);
    canvas.line(&[(10.0, 116.0), (120.0, 116.0)], 2.0, [30, 30, 30]);
    let pitch = 104.0 / n as f64;
    let width = if n > 3 { (pitch - 6.0).min(16.0) } else { dice.whole(16, 24) };
    for (k, (color, height)) in colors.iter().zip(&heights).enumerate() {
        let x = 14.0 + pitch * (k as f64 + 0.5);
        let bar = [x - width / 2.0, 115.0 - f64::from(*height), x + width / 2.0, 115.0];
        canvas.rectangle(bar, shade(dice, color.ink, 10));
    }

    let names: Vec<&str> = colors.iter().map(|c| c.name).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|&k| heights[k]);
    let tallest = dice.choose(&["Which bar is the tallest?", "What color is the tallest bar?"]);
    let shortest = dice.choose(&["Which bar is the shortest?", "What color is the shortest bar?"]);
    let two = dice.sample(&order, 2);
    Ok(vec![
        ask(2, tallest, names[order[n - 1]]),
        ask(2, shortest, names[order[0]]),
        ask(2, "How many bars are there?", n.to_string()),
        ask(
            1,
            format!("Is the {} bar taller than the {} bar?", names[two[0]], names[two[1]]),
            yes(heights[two[0]] > heights[two[1]]),
        ),
        ask(0, "List the bars.", names.join(" ")),
    ])
}
