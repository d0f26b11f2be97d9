//! What a scene is, and what the eight families share: colours, shapes, questions.

use std::f64::consts::PI;

use clap::ValueEnum;
use image::RgbImage;

use crate::canvas::{Canvas, Ink, Point, around};
use crate::dice::Dice;
use crate::{objects, signs, world};

/// The eight families of scenes, one for each of EmberNet's experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Family {
    /// A word or a number.
    VisionOcr,
    /// Boxes and arrows.
    VisionDiagram,
    /// A bar chart.
    CodeMathChart,
    /// A sum or a difference.
    CodeMathFormula,
    /// One to three shapes.
    SpatialScene,
    /// Where shapes are, and how many.
    SpatialReasoning,
    /// A traffic light, a battery, a thermometer or a clock.
    AgenticKnowledge,
    /// A terrain, or shapes of which one may be different.
    AgenticReasoning,
}

impl Family {
    /// The family's name, as on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
    }
}

/// A question about a scene.
pub struct Question {
    /// How often to ask it, beside the scene's other questions. The model has learned those of weight 0 too, but its
    /// exams leave them out.
    pub weight: u32,
    /// The question.
    pub text: String,
    /// The right answer.
    pub answer: String,
}

/// A question, as the families list them.
pub fn ask(weight: u32, text: impl Into<String>, answer: impl Into<String>) -> Question {
    Question { weight, text: text.into(), answer: answer.into() }
}

/// A picture, and what can be asked about it.
pub struct Scene {
    /// The picture.
    pub picture: RgbImage,
    /// All its questions.
    pub questions: Vec<Question>,
    /// The question that is asked if there is to be only one.
    pub picked: usize,
}

impl Scene {
    /// The scene of a family that `seed` stands for.
    ///
    /// # Errors
    /// The letter that the font lacks.
    pub fn draw(family: Family, seed: u64) -> Result<Self, char> {
        let paint = match family {
            Family::VisionOcr => signs::text,
            Family::VisionDiagram => signs::diagram,
            Family::CodeMathChart => signs::chart,
            Family::CodeMathFormula => signs::formula,
            Family::SpatialScene => objects::scene,
            Family::SpatialReasoning => objects::spatial,
            Family::AgenticKnowledge => world::knowledge,
            Family::AgenticReasoning => world::reasoning,
        };
        let mut dice = Dice::new(seed, family as u64);
        let base = dice.between(236, 255);
        let mut canvas = Canvas::new([0; 3].map(|_: i32| (base - dice.between(0, 14)) as u8));
        let questions = paint(&mut canvas, &mut dice)?;
        let picked = pick(&questions, &mut dice);
        Ok(Scene { picture: canvas.0, questions, picked })
    }
}

/// Where one of the questions is, drawn by weight.
fn pick(questions: &[Question], dice: &mut Dice) -> usize {
    let mut left = dice.below(questions.iter().map(|q| q.weight as usize).sum());
    questions
        .iter()
        .position(|q| {
            let here = left < q.weight as usize;
            left = left.saturating_sub(q.weight as usize);
            here
        })
        .unwrap_or(0)
}

/// A colour that questions name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Color {
    /// Its name.
    pub name: &'static str,
    /// Its middle shade.
    pub ink: Ink,
}

pub const RED: Color = Color { name: "red", ink: [214, 34, 34] };
pub const GREEN: Color = Color { name: "green", ink: [34, 150, 50] };
pub const BLUE: Color = Color { name: "blue", ink: [36, 70, 214] };
pub const YELLOW: Color = Color { name: "yellow", ink: [240, 208, 20] };
pub const ORANGE: Color = Color { name: "orange", ink: [242, 128, 16] };
pub const PURPLE: Color = Color { name: "purple", ink: [134, 36, 176] };
pub const BLACK: Color = Color { name: "black", ink: [24, 24, 24] };
pub const COLORS: [Color; 7] = [RED, GREEN, BLUE, YELLOW, ORANGE, PURPLE, BLACK];

/// A shade near `ink`: each channel up to `amount` away.
pub fn shade(dice: &mut Dice, ink: Ink, amount: i32) -> Ink {
    ink.map(|c| (i32::from(c) + dice.between(-amount, amount)).clamp(0, 255) as u8)
}

/// A shape that questions name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Circle,
    Square,
    Triangle,
    Star,
    Cross,
}

pub const SHAPES: [Shape; 5] = [Shape::Circle, Shape::Square, Shape::Triangle, Shape::Star, Shape::Cross];

impl Shape {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Shape::Circle => "circle",
            Shape::Square => "square",
            Shape::Triangle => "triangle",
            Shape::Star => "star",
            Shape::Cross => "cross",
        }
    }

    /// Its name if there are several.
    pub fn plural(self) -> String {
        format!("{}{}", self.name(), if self == Shape::Cross { "es" } else { "s" })
    }

    /// Draws it around a point, about `r` pixels to each side, in a shade of a colour.
    pub fn draw(self, canvas: &mut Canvas, dice: &mut Dice, (x, y): Point, r: f64, color: Color) {
        let ink = shade(dice, color.ink, 10);
        match self {
            Shape::Circle => canvas.ellipse(around((x, y), r, r), ink),
            Shape::Square => canvas.rectangle(around((x, y), r * 0.9, r * 0.9), ink),
            Shape::Triangle => canvas.polygon(&[(x, y - r), (x - r, y + r * 0.85), (x + r, y + r * 0.85)], ink),
            Shape::Star => {
                let tip = |k: i32| {
                    let (angle, far) = (f64::from(k) * PI / 5.0 - PI / 2.0, if k % 2 == 0 { 1.12 } else { 0.45 });
                    (x + r * far * libm::cos(angle), y + r * far * libm::sin(angle))
                };
                canvas.polygon(&(0..10).map(tip).collect::<Vec<_>>(), ink);
            }
            Shape::Cross => {
                canvas.rectangle(around((x, y), r, r * 0.36), ink);
                canvas.rectangle(around((x, y), r * 0.36, r), ink);
            }
        }
    }
}

/// The answer to a question that asks whether.
pub fn yes(it_is: bool) -> &'static str {
    if it_is { "yes" } else { "no" }
}
