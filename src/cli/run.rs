//! `ternion run`: one question, one answer; with a BitGen, a picture's caption.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Args;
use ternion::Error;
use ternion::apps::bitgen::{BitGen, Caption};
use ternion::engine::GenerateOptions;
use ternion::files::{Image, ModelFiles, SamplingDefaults};
use ternion::unstable::models::BITGEN;

use crate::cli::Outcome;
use crate::cli::args::{MemoryArgs, ModelArgs, family, model_files, open_images, question, read_prompt};
use crate::cli::conversation::ConversationArgs;
use crate::cli::generate::GenerateArgs;
use crate::cli::json_answer::{self, JsonAnswer};
use crate::cli::messages::say;
use crate::cli::output::{StreamedText, bytes, ending, ms, statistics, stream};
use crate::cli::plot::PlotArgs;
use crate::cli::text_warnings::warn_of_words;

/// Answer one question and end.
///
/// The answer goes to stdout as it is generated. The most likely token is taken at each step unless --temp is given.
///
/// A BitGen writes a caption of one picture. Its text encoder reads the prompt with the picture, and its decoder starts
/// from the prompt's first token, or without a prompt from the start-of-text token.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: ternion run --image examples/shapes/samples/spatial_scene_100000.png -p 'What color is the circle?'\n\
                        Example: ternion run -m models/embernet --image cat.png -p 'What is in the picture?' -n 100\n\
                        Example: ternion run -m examples/shapes/bitgen/model --image examples/shapes/samples/spatial_scene_100000.png"
)]
pub struct Run {
    #[command(flatten)]
    model: ModelArgs,
    /// Pictures to ask about (PNG, JPEG, WebP, BMP, GIF); can be given several times.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    image: Vec<PathBuf>,
    /// The question; `-` reads it from stdin, `@FILE` from a file; default: stdin, unless it is a terminal. Optional for a BitGen.
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    #[command(flatten)]
    generate: GenerateArgs,
    #[command(flatten)]
    conversation: ConversationArgs,
    #[command(flatten)]
    memory: MemoryArgs,
    /// With a BitGen: write the prompt beside the picture into its memory, which the file of --memory keeps.
    #[arg(long, requires = "memory")]
    remember: bool,
    /// Print a JSON object when the answer has ended: text, thoughts, tokens, why it ended, counts, times, device and version.
    #[arg(long)]
    json: bool,
    /// Answer each line of this file (`-`: stdin), a JSON object as {"prompt": "What is it?", "image": "a.png"}, where `image` may
    /// be a list or be left out; print an object a line, as --json has it.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true, conflicts_with_all = ["prompt", "image", "json", "remember"])]
    batch: Option<PathBuf>,
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
        self.generate.check()?;
        let prompt = self.prompt.as_deref().map(read_prompt).transpose()?;
        let images = open_images(&self.image)?;
        let files = model_files(self.model.model.as_deref())?;
        let options = self.generate.options(verbose, &SamplingDefaults::of(&files)?)?;
        if let Some(batch) = &self.batch {
            return self.answer_all(files, batch, &options, verbose);
        }
        if family(&files)? == &BITGEN {
            self.describe(files, prompt.as_deref(), &images, &options, verbose)
        } else {
            self.answer(files, &question(prompt)?, &images, options, verbose)
        }
    }

    fn answer_all(&self, files: ModelFiles, batch: &Path, options: &GenerateOptions, verbose: bool) -> Outcome {
        self.memory.reject()?;
        if self.plot.plots(&[])?.any() {
            return Err(Error::argument("batch", "cannot go with plots").into());
        }
        let engine = self.model.open_chat(files)?;
        self.conversation.check(&engine, verbose);
        json_answer::batch(&engine, &self.conversation, batch, options)
    }

    fn answer(
        &self,
        files: ModelFiles,
        prompt: &str,
        images: &[Image],
        options: GenerateOptions,
        verbose: bool,
    ) -> Outcome {
        self.memory.reject()?;
        if self.remember {
            return Err(Error::argument("remember", "is for a BitGen; this model has no episodic memory").into());
        }
        let plots = self.plot.plots(&self.image)?;
        if plots.any() && self.json {
            return Err(Error::argument("json", "cannot go with plots").into());
        }
        if plots.any() && self.conversation.context_shift {
            return Err(Error::argument("context-shift", "cannot go with plots, which show whole answers").into());
        }
        let engine = self.model.open_chat(files)?;
        plots.check(engine.info())?;
        self.conversation.check(&engine, verbose);
        let mut session = engine.session()?;
        for image in images {
            session.push_image(image)?;
        }
        self.conversation.begin(&mut session)?;
        self.conversation.ask(&mut session, prompt)?;
        if self.json {
            return JsonAnswer::of(&engine, &mut session, options)?.print();
        }
        let first = session.tokens().len();
        let answer = stream(&mut session, options, plots.any(), self.conversation.hide_thoughts, || false)?;
        if verbose {
            statistics(&engine, &session, images.len(), &answer.stats)?;
        }
        plots.draw(&engine, &mut session, images, first)?;
        Ok(answer.written?)
    }

    fn describe(
        &self,
        files: ModelFiles,
        prompt: Option<&str>,
        images: &[Image],
        options: &GenerateOptions,
        verbose: bool,
    ) -> Outcome {
        self.plot.reject("a BitGen")?;
        if self.json {
            return Err(Error::argument("json", "is for a model that chats").into());
        }
        self.conversation.reject()?;
        if images.len() > 1 {
            let problem = format!("{} pictures are given; a BitGen describes one", images.len());
            return Err(Error::argument("image", problem).into());
        }
        let remembered = match (self.remember, prompt) {
            (true, None) => {
                return Err(Error::argument("remember", "needs a prompt to remember; give one with -p").into());
            }
            (remember, prompt) => prompt.filter(|_| remember),
        };
        let model = self.model.open_bitgen(files)?;
        if let Some(prompt) = prompt {
            warn_of_words(model.tokenizer(), prompt)?;
        }
        let _lock = self.memory.open(&model)?;
        let mut text = StreamedText::new();
        let on_text = |piece: &str| {
            text.push(piece);
            // Nobody reads what comes behind.
            if text.written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let caption = model.describe(prompt, images.first(), options, &self.memory.noise(), on_text);
        // The text before an error ends its line.
        let written = if text.begun || caption.is_ok() { text.end() } else { Ok(()) };
        let caption = caption?;
        if let Some(prompt) = remembered {
            model.remember(&model.tokens(prompt)?, images.first())?;
        }
        self.memory.save(&model)?;
        if verbose {
            caption_statistics(&model, &caption, images.len());
        }
        Ok(written?)
    }
}

/// Prints counts and times of a caption to stderr.
fn caption_statistics(model: &BitGen, caption: &Caption, images: usize) {
    let report = model.report();
    let (weights, memory) = (bytes(report.weight_bytes), bytes(report.memory_bytes));
    say!("loaded:    {weights} of weights, {memory} on the device, in {}", ms(report.time));
    let (picture, n) = (if images > 0 { "the picture and " } else { "" }, caption.prompt_tokens);
    let plural = if n == 1 { "" } else { "s" };
    say!("read:      {picture}{n} token{plural} in {}", ms(caption.reading));
    let each = 1e3 * caption.writing.as_secs_f64() / caption.steps.max(1) as f64;
    say!("generated: {} tokens, {each:.2} ms/token; {}", caption.steps, ending(Some(caption.end)));
}
