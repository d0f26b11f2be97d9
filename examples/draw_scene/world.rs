//! Families about things that mean something: instruments, and terrains for robots.

use std::f64::consts::PI;

use crate::canvas::{Canvas, Ink, Point, around, inset};
use crate::dice::Dice;
use crate::objects::odd_one;
use crate::scene::{BLACK, BLUE, GREEN, ORANGE, Question, RED, ask, shade, yes};

/// A traffic light, a battery, a thermometer or a clock.
pub fn knowledge(canvas: &mut Canvas, dice: &mut Dice) -> Result<Vec<Question>, char> {
    let place = (64.0 + dice.whole(-8, 8), 64.0 + dice.whole(-4, 4));
    let draw = dice.choose(&[light, battery, thermometer, clock] as &[fn(&mut Canvas, &mut Dice, Point) -> _]);
    Ok(draw(canvas, dice, place))
}

fn light(canvas: &mut Canvas, dice: &mut Dice, (x, y): Point) -> Vec<Question> {
    let on = dice.below(3);
    canvas.rounded(around((x, y), 19.0, 50.0), 8.0, [50, 50, 54]);
    for (k, lit) in [[240, 30, 30], [250, 215, 20], [30, 205, 70]].into_iter().enumerate() {
        let ink = if k == on { shade(dice, lit, 10) } else { [90, 90, 92] };
        canvas.ellipse(around((x, y - 32.0 + 32.0 * k as f64), 13.0, 13.0), ink);
    }
    vec![
        ask(3, "May I go?", ["no", "slow down", "yes"][on]),
        ask(1, "What color is the light?", ["red", "yellow", "green"][on]),
        ask(2, "What should I do?", ["stop", "slow down", "go"][on]),
    ]
}

fn battery(canvas: &mut Canvas, dice: &mut Dice, (x, y): Point) -> Vec<Question> {
    let level = dice.below(3);
    let (low, high) = [(0.06, 0.2), (0.42, 0.58), (0.86, 1.0)][level];
    let full = dice.uniform(low, high);
    canvas.frame([x - 46.0, y - 22.0, x + 42.0, y + 22.0], 3.0, [30, 30, 30]);
    canvas.rectangle([x + 43.0, y - 9.0, x + 49.0, y + 9.0], [30, 30, 30]);
    // Mostly the colour tells the level too.
    let telling = dice.chance(0.6);
    let color = if telling { [RED, ORANGE, GREEN][level] } else { dice.choose(&[GREEN, BLUE, BLACK]) };
    canvas.rectangle([x - 41.0, y - 17.0, x - 41.0 + 78.0 * full, y + 17.0], shade(dice, color.ink, 10));
    vec![
        ask(3, "Is the battery low?", yes(level == 0)),
        ask(2, "How full is the battery?", ["low", "half", "full"][level]),
        ask(1, "Should I charge it?", yes(level == 0)),
    ]
}

fn thermometer(canvas: &mut Canvas, dice: &mut Dice, (x, y): Point) -> Vec<Question> {
    let level = dice.below(3);
    let (low, high) = [(0.08, 0.22), (0.45, 0.58), (0.82, 0.98)][level];
    let full = dice.uniform(low, high);
    let (glass, bulb, rim) = ([x - 9.0, y - 52.0, x + 9.0, y + 40.0], around((x, y + 40.0), 16.0, 16.0), [60; 3]);
    canvas.rounded(glass, 9.0, rim);
    canvas.rounded(inset(glass, 2.0), 7.0, [250; 3]);
    let red = shade(dice, [220, 30, 30], 10);
    canvas.ellipse(bulb, red);
    canvas.ring(bulb, 2.0, rim);
    canvas.rectangle([x - 5.0, y + 30.0 - 78.0 * full, x + 5.0, y + 40.0], red);
    for k in 0..6 {
        let mark = y - 44.0 + 14.0 * f64::from(k);
        canvas.line(&[(x + 12.0, mark), (x + 20.0, mark)], 2.0, rim);
    }
    vec![
        ask(2, "Is it hot?", yes(level == 2)),
        ask(2, "How warm is it?", ["cold", "warm", "hot"][level]),
        ask(2, "Do I need a coat?", yes(level == 0)),
    ]
}

fn clock(canvas: &mut Canvas, dice: &mut Dice, (x, y): Point) -> Vec<Question> {
    const DARK: Ink = [30; 3];
    let hour = dice.between(1, 12);
    let face = around((x, y), 50.0, 50.0);
    canvas.ellipse(face, [252, 252, 250]);
    canvas.ring(face, 3.0, DARK);
    // A point `far` from the centre, in the direction of an hour.
    let at = |hour: i32, far: f64| {
        let angle = PI * f64::from(hour) / 6.0;
        (x + far * libm::sin(angle), y - far * libm::cos(angle))
    };
    for k in 0..12 {
        let (from, width) = if k % 3 == 0 { (38.0, 3.0) } else { (42.0, 2.0) };
        canvas.line(&[at(k, from), at(k, 46.0)], width, DARK);
    }
    canvas.line(&[(x, y), (x, y - 38.0)], 3.0, [60; 3]);
    let red = shade(dice, [200, 30, 30], 10);
    canvas.arrow((x, y), at(hour, 33.0), 6.0, 13.0, red);
    canvas.ellipse(around((x, y), 4.0, 4.0), DARK);
    let hours: Vec<i32> = (1..=12).collect();
    let guess = if dice.chance(0.5) { hour } else { dice.other(&hours, &[hour]) };
    vec![
        ask(3, dice.choose(&["What time is it?", "What hour is it?"]), hour.to_string()),
        ask(1, format!("Is it {guess} o'clock?"), yes(guess == hour)),
    ]
}

/// A terrain, or shapes of which one may be different.
pub fn reasoning(canvas: &mut Canvas, dice: &mut Dice) -> Result<Vec<Question>, char> {
    Ok(if dice.chance(0.45) { terrain(canvas, dice) } else { odd_one(canvas, dice) })
}

fn terrain(canvas: &mut Canvas, dice: &mut Dice) -> Vec<Question> {
    let (name, robot, draw): (_, _, fn(&mut Canvas, &mut Dice)) = dice.choose(&[
        ("water", "boat", water),
        ("sky", "drone", sky),
        ("stairs", "robot with legs", stairs),
        ("road", "robot with wheels", road),
    ]);
    draw(canvas, dice);
    let guess = dice.choose(&["boat", "drone"]);
    vec![
        ask(3, "Which robot should go?", robot),
        ask(1, "What terrain is this?", name),
        ask(1, format!("Can the {guess} go?"), yes(robot == guess)),
    ]
}

fn water(canvas: &mut Canvas, dice: &mut Dice) {
    let top = dice.between(30, 56);
    canvas.rectangle([0.0, f64::from(top), 127.0, 127.0], shade(dice, [40, 110, 205], 14));
    for y in (top + 12..126).step_by(16) {
        let (phase, ink) = (dice.uniform(0.0, 6.0), shade(dice, [190, 220, 250], 8));
        let wave = |x: f64| (x, f64::from(y) + 4.0 * libm::sin(x / 6.0 + phase));
        canvas.line(&(0..43).map(|k| wave(f64::from(3 * k))).collect::<Vec<_>>(), 3.0, ink);
    }
}

fn sky(canvas: &mut Canvas, dice: &mut Dice) {
    canvas.rectangle([0.0, 0.0, 127.0, 127.0], shade(dice, [140, 200, 250], 12));
    for _ in 0..dice.between(2, 4) {
        let (x, y, r) = (dice.whole(20, 108), dice.whole(20, 108), dice.whole(10, 15));
        for puff in [(x - r, y + 3.0), (x, y - 4.0), (x + r, y + 3.0)] {
            canvas.ellipse(around(puff, r, r * 0.8), [255; 3]);
        }
    }
}

fn stairs(canvas: &mut Canvas, dice: &mut Dice) {
    let n = dice.between(4, 6);
    let (flip, ink) = (dice.chance(0.5), shade(dice, [150, 140, 130], 14));
    let (width, height) = (112.0 / f64::from(n), 88.0 / f64::from(n));
    for k in 0..n {
        let left = if flip { 120.0 - f64::from(k + 1) * width } else { 8.0 + f64::from(k) * width };
        let step = [left, 112.0 - f64::from(k + 1) * height, left + width, 118.0];
        canvas.rectangle(step, ink);
        canvas.frame(step, 2.0, [50; 3]);
    }
}

fn road(canvas: &mut Canvas, dice: &mut Dice) {
    canvas.rectangle([0.0, 0.0, 127.0, 127.0], shade(dice, [120, 180, 90], 14));
    let (x, w) = (64.0 + dice.whole(-12, 12), dice.whole(34, 44));
    let corners = [(x - w * 0.5, 0.0), (x + w * 0.5, 0.0), (x + w, 128.0), (x - w, 128.0)];
    canvas.polygon(&corners, shade(dice, [80, 80, 84], 10));
    for y in (4..128).step_by(28).map(f64::from) {
        canvas.rectangle([x - 3.0, y, x + 3.0, y + 14.0], [250, 250, 240]);
    }
}
