//! `ternion run`: one question, one answer.

use std::path::PathBuf;

use clap::Args;

use super::Outcome;
use super::args::{GenerateArgs, ModelArgs, open_images, read_prompt};
use super::output::{statistics, stream};
use super::plot::PlotArgs;

/// Answer one question and end.
///
/// The answer goes to stdout as it is generated. The most likely token is taken at each step unless --temp is given.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: ternion run --image examples/shapes/samples/spatial_scene_100000.png -p 'What color is the circle?'\n\
                        Example: ternion run -m models/embernet --image cat.png -p 'What is in the picture?' -n 100"
)]
pub struct Run {
    #[command(flatten)]
    model: ModelArgs,
    /// A picture to ask about (PNG, JPEG, WebP, BMP, GIF); can be given several times.
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// The question; `-` reads it from stdin, `@FILE` from a file.
    #[arg(short, long, value_name = "TEXT")]
    prompt: String,
    #[command(flatten)]
    generate: GenerateArgs,
    #[command(flatten)]
    plot: PlotArgs,
}

impl Run {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of the engine, and of writing to stdout.
    pub fn main(&self, verbose: bool) -> Outcome {
        // What is cheap to check comes before loading.
        let options = self.generate.options()?;
        let prompt = read_prompt(&self.prompt)?;
        let images = open_images(&self.image)?;
        let plots = self.plot.plots(&self.image)?;
        let engine = self.model.open()?;
        plots.check(engine.info())?;
        let mut session = engine.session()?;
        for image in &images {
            session.push_image(image)?;
        }
        session.push_question(&prompt)?;
        let answer = session.tokens().len();
        let result = stream(&mut session, options)?;
        if verbose {
            statistics(&engine, &session, images.len(), &result)?;
        }
        Ok(plots.draw(&engine, &mut session, &images, answer)?)
    }
}
