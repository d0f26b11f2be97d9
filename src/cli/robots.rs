//! `ternion robots`: which robots suit a task, with the steps of reasoning.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use ternion::apps::robots::{RobotAttention, RobotDecision, RobotModel, RobotOptions};
use ternion::engine::NamedValues;

use crate::cli::Outcome;
use crate::cli::args::{DeviceArgs, one_of, open_image, read_prompt};
use crate::cli::messages::say_setup;
use crate::cli::output::{Bar, table};
use crate::cli::text_warnings::warn_of_words;

/// Choose robots for a task, with a BitGenModel (BitGen's full robot model), and show its steps of reasoning.
///
/// The first table has the chosen robots with their independent probabilities; the second one has the confidence of each
/// step of reasoning, its gate (reasoning stops below 0.5), and the norm of its state.
///
/// In this architecture a robot's score is linear in the task's vector beside the robot's own, so that a task moves the
/// scores of all robots alike: their order is the same for every task and picture, but for rounding.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: ternion robots -m models/bitgen-robots --image site.png -p 'Inspect the bridge from below.'"
)]
pub struct Robots {
    /// The model: a directory, a safetensors file or index, or a torch checkpoint, with config.json beside it.
    #[arg(short, long, value_name = "PATH", allow_hyphen_values = true)]
    model: PathBuf,
    /// The task; - reads it from stdin, @FILE from a file.
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: String,
    /// A picture beside the task.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    image: Option<PathBuf>,
    /// Which keys attention sees: as the original's code does, or with sinks that stay and a window that slides. They
    /// differ if a text continues in a further call, or is longer than sinks and window.
    #[arg(long, default_value = "original", value_parser = one_of::<RobotAttention>())]
    attention: RobotAttention,
    #[command(flatten)]
    device: DeviceArgs,
    /// The tokenizer.json; default: the one beside the model.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    tokenizer: Option<PathBuf>,
    /// Print JSON instead of tables: all robots' scores, and the states of reasoning, too.
    #[arg(long)]
    json: bool,
}

impl Robots {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of reading the prompt and the picture, of [`RobotModel::open`] and [`RobotModel::choose`], and of writing.
    pub fn main(&self) -> Outcome {
        self.device.reject_for("a robot's model")?;
        let text = read_prompt(&self.prompt)?;
        let image = self.image.as_deref().map(open_image).transpose()?;
        let options = RobotOptions {
            device: self.device.options(),
            precision: self.device.precision,
            tokenizer: self.tokenizer.clone(),
            attention: self.attention,
            samples: 1,
        };
        let bar = Bar::new("loading");
        let model = RobotModel::open_with(self.model.as_path(), options, |p| bar.show(&p))?;
        bar.end();
        let (name, report) = (self.model.display().to_string(), model.report());
        say_setup(&name, &report.device, &report.why);
        let tokens = model.tokens(&text)?;
        warn_of_words(model.tokenizer(), &text)?;
        let decision = model.choose(&tokens, image.as_ref())?;
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{:#}", json_of(&decision, &model, tokens.len()))?;
            return Ok(());
        }
        Ok(print(&mut out, &decision)?)
    }
}

/// The length of a state.
fn norm(state: &[f32]) -> f64 {
    state.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

fn print(out: &mut impl Write, decision: &RobotDecision) -> io::Result<()> {
    let chosen = decision.robots.iter().map(|r| vec![r.name.clone(), format!("{:.1} %", 100.0 * r.probability)]);
    table(out, &["robot", "probability"], &chosen.collect::<Vec<_>>())?;
    writeln!(out)?;
    let steps = decision.steps.iter().enumerate().map(|(i, step)| {
        let numbers = [f64::from(step.confidence), f64::from(step.gate), norm(&step.state)];
        [(i + 1).to_string()].into_iter().chain(numbers.map(|v| format!("{v:.3}"))).collect()
    });
    table(out, &["step", "confidence", "gate", "norm"], &steps.collect::<Vec<Vec<String>>>())
}

fn json_of(decision: &RobotDecision, model: &RobotModel, tokens: usize) -> Value {
    let robots = decision.robots.iter().map(|r| json!({ "robot": r.name, "probability": r.probability }));
    let all =
        model.sizes().robots.iter().zip(&decision.scores).map(|(name, score)| json!({ "robot": name, "score": score }));
    let steps = decision
        .steps
        .iter()
        .map(|s| json!({ "confidence": s.confidence, "gate": s.gate, "norm": norm(&s.state), "state": s.state }));
    json!({
        "tokens": tokens,
        "attention": model.attention().name(),
        "robots": robots.collect::<Vec<_>>(),
        "scores": all.collect::<Vec<_>>(),
        "steps": steps.collect::<Vec<_>>(),
        "features": decision.features.as_ref().map(|[text, image]| json!({ "text": text, "image": image })),
        "context": decision.context,
    })
}
