//! Families of coloured shapes: what is there, where it is, how many there are, and which one is different.

use crate::canvas::{Canvas, Point};
use crate::dice::Dice;
use crate::scene::{COLORS, Color, Question, SHAPES, Shape, ask, yes};

/// A shape of a colour at a place.
type Object = (Shape, Color, Point);

/// Two places clearly apart along one axis, and how the first lies to the second.
fn pair(dice: &mut Dice) -> ([Point; 2], &'static str) {
    let (low, high) = (dice.whole(22, 46), dice.whole(84, 106));
    let across = dice.whole(34, 94);
    let near = (across + dice.whole(-12, 12)).clamp(22.0, 106.0);
    if dice.chance(0.5) { ([(low, across), (high, near)], "left of") } else { ([(across, low), (near, high)], "above") }
}

/// Three places at least 42 pixels apart along an axis.
fn three(dice: &mut Dice) -> [Point; 3] {
    let apart = |a: Point, b: Point| (a.0 - b.0).abs().max((a.1 - b.1).abs()) >= 42.0;
    loop {
        let [a, b, c] = [0; 3].map(|_| (dice.whole(22, 106), dice.whole(22, 106)));
        if apart(a, b) && apart(a, c) && apart(b, c) {
            return [a, b, c];
        }
    }
}

/// The words for a shape, as in "an orange star".
fn described(shape: Shape, color: Color) -> String {
    let article = if color.name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {} {}", color.name, shape.name())
}

/// One to three shapes, all of different kinds and colours.
pub fn scene(canvas: &mut Canvas, dice: &mut Dice) -> Result<Vec<Question>, char> {
    let n = dice.choose(&[1, 2, 2, 2, 3]);
    let (shapes, colors) = (dice.sample(&SHAPES, n), dice.sample(&COLORS, n));
    let (places, caption) = match n {
        1 => (vec![(dice.whole(30, 98), dice.whole(30, 98))], Some(described(shapes[0], colors[0]))),
        2 => {
            let (places, relation) = pair(dice);
            let [first, second] = [0, 1].map(|i| described(shapes[i], colors[i]));
            (places.to_vec(), Some(format!("{first} {relation} {second}")))
        }
        _ => (three(dice).to_vec(), None),
    };
    for ((shape, color), place) in shapes.iter().zip(&colors).zip(places) {
        let r = dice.whole(14, 19);
        shape.draw(canvas, dice, place, r, *color);
    }
    let (i, j) = (dice.below(n), dice.below(n));
    let sought = if dice.chance(0.5) { dice.choose(&shapes) } else { dice.other(&SHAPES, &shapes) };
    let which = dice.choose(&["What color is the", "What is the color of the"]);
    let mut questions = vec![
        ask(2, format!("{which} {}?", shapes[i].name()), colors[i].name),
        ask(2, format!("What shape is {}?", colors[j].name), shapes[j].name()),
        ask(1, format!("Is there a {}?", sought.name()), yes(shapes.contains(&sought))),
    ];
    if let Some(caption) = caption {
        questions.push(ask(3, dice.choose(&["Describe the image.", "What is in the image?"]), caption));
    }
    Ok(questions)
}

/// Where two shapes are, or how many shapes there are.
pub fn spatial(canvas: &mut Canvas, dice: &mut Dice) -> Result<Vec<Question>, char> {
    Ok(if dice.chance(0.5) { relation(canvas, dice) } else { count(canvas, dice) })
}

fn relation(canvas: &mut Canvas, dice: &mut Dice) -> Vec<Question> {
    let (shapes, colors) = (dice.sample(&SHAPES, 2), dice.sample(&COLORS, 2));
    let (places, forth) = pair(dice);
    for i in 0..2 {
        let r = dice.whole(14, 19);
        shapes[i].draw(canvas, dice, places[i], r, colors[i]);
    }
    let (back, ends) = if forth == "above" { ("below", ["top", "bottom"]) } else { ("right of", ["left", "right"]) };
    let [a, b] = [shapes[0].name(), shapes[1].name()];
    let claims = [(a, forth, b, true), (a, back, b, false), (b, back, a, true), (b, forth, a, false)];
    let claims =
        dice.sample(&claims, 2).into_iter().map(|(x, is, y, so)| ask(2, format!("Is the {x} {is} the {y}?"), yes(so)));
    let mut questions: Vec<Question> = claims.collect();
    let (is, of, answer) = dice.choose(&[(forth, b, a), (back, a, b)]);
    questions.push(ask(2, format!("What is {is} the {of}?"), answer));
    let [first, second] = [0, 1].map(|i| described(shapes[i], colors[i]));
    questions.push(ask(0, "Describe the image.", format!("{first} {forth} {second}")));
    let i = dice.below(2);
    questions.push(ask(1, format!("Where is the {}?", shapes[i].name()), ends[i]));
    questions
}

fn count(canvas: &mut Canvas, dice: &mut Dice) -> Vec<Question> {
    let total = dice.between(1, 6) as usize;
    let kinds = dice.choose(&[1, 2, 2, 3]);
    let kinds = dice.sample(&SHAPES, kinds);
    let shades = dice.choose(&[1, 2, 3]);
    let shades = dice.sample(&COLORS, shades);
    let cells: Vec<Point> = (0..9).map(|i| (f64::from(24 + 40 * (i % 3)), f64::from(24 + 40 * (i / 3)))).collect();
    let objects: Vec<Object> =
        dice.sample(&cells, total).into_iter().map(|cell| (dice.choose(&kinds), dice.choose(&shades), cell)).collect();
    for &(shape, color, (x, y)) in &objects {
        let place = (x + dice.whole(-4, 4), y + dice.whole(-4, 4));
        let r = dice.whole(13, 16);
        shape.draw(canvas, dice, place, r, color);
    }
    // Mostly ask for what is there.
    let seen = dice.choose(&objects);
    let shape = if dice.chance(0.8) { seen.0 } else { dice.other(&SHAPES, &kinds) };
    let seen = dice.choose(&objects);
    let color = if dice.chance(0.8) { seen.1 } else { dice.other(&COLORS, &shades) };
    let of_shape = objects.iter().filter(|o| o.0 == shape).count();
    let of_color = objects.iter().filter(|o| o.1 == color).count();
    vec![
        ask(2, format!("How many {} are there?", shape.plural()), of_shape.to_string()),
        ask(2, "How many shapes are there?", total.to_string()),
        ask(1, format!("How many {} shapes are there?", color.name), of_color.to_string()),
    ]
}

/// Three or four shapes, all the same but for one at most.
pub fn odd_one(canvas: &mut Canvas, dice: &mut Dice) -> Vec<Question> {
    let n = dice.choose(&[3, 4, 4]);
    let mut cells = dice.sample(&[(36.0, 36.0), (92.0, 36.0), (36.0, 92.0), (92.0, 92.0)], n);
    // In reading order, so that the lists are.
    cells.sort_by(|a: &Point, b| a.1.total_cmp(&b.1).then(a.0.total_cmp(&b.0)));
    let (shapes, colors) = (dice.sample(&SHAPES, 2), dice.sample(&COLORS, 2));
    let odd = dice.below(n);
    // Does the odd one differ in colour, in shape?
    let (in_color, in_shape) =
        dice.choose(&[(false, false), (true, false), (true, false), (false, true), (false, true), (true, true)]);
    let mut listed = (Vec::new(), Vec::new());
    for (i, (x, y)) in cells.into_iter().enumerate() {
        let color = colors[usize::from(i == odd && in_color)];
        let shape = shapes[usize::from(i == odd && in_shape)];
        let place = (x + dice.whole(-5, 5), y + dice.whole(-5, 5));
        let r = dice.whole(14, 18);
        shape.draw(canvas, dice, place, r, color);
        listed.0.push(color.name);
        listed.1.push(shape.name());
    }
    vec![
        ask(2, "Are all shapes the same color?", yes(!in_color)),
        ask(2, "Are all shapes the same shape?", yes(!in_shape)),
        ask(1, "Which color is different?", if in_color { colors[1].name } else { "none" }),
        ask(1, "Which shape is different?", if in_shape { shapes[1].name() } else { "none" }),
        ask(0, "List the colors.", listed.0.join(" ")),
        ask(0, "List the shapes.", listed.1.join(" ")),
    ]
}
