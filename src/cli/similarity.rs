//! `ternion similarity`: cosines of texts and pictures.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;
use ternion::apps::bitgen::{BitGen, Similarities};
use ternion::engine::Progress;
use ternion::files::Image;
use ternion::{Error, Result};

use crate::cli::Outcome;
use crate::cli::args::{BitGenArgs, open_images, read_texts, tokens};
use crate::cli::output::{Bar, table};
use crate::cli::plot::{Font, PlotFile, SimilarityFigure};
use crate::cli::text_warnings::warn_of_features;

/// Pictures that are decoded and embedded at once.
const BATCH: usize = 16;
/// Maximum number of pictures side by side in a table; more have a line each.
const MAX_COLUMNS: usize = 8;
/// Maximum number of rows and columns, and of cells, of a picture.
const MAX_DRAWN: [usize; 2] = [1000, 100_000];

/// Compare each text with each picture.
///
/// The table has a line for each text and a column for each picture, or the other way round where there are more than
/// 8 pictures. JSON has all that --show names.
///
/// A BitGen compares a text by its first token alone. A warning names words that the tokenizer does not know, and words that
/// are ignored.
#[derive(Debug, Args)]
#[command(after_help = "Example: ternion similarity -m models/bitgen --image a.png b.jpg --text 'a cat' 'a dog'\n\
                        Example: ternion similarity -m models/bitgen --image *.jpg --text @labels.txt --plot heat.png")]
pub struct Similarity {
    #[command(flatten)]
    model: BitGenArgs,
    /// Pictures, several in a row or each with its own option. The first may begin with a dash.
    #[arg(short, long, value_name = "FILE", allow_hyphen_values = true, required = true)]
    image: Vec<PathBuf>,
    /// Texts; `-` reads them from stdin, @FILE from a file, one per line.
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true, required = true)]
    text: Vec<String>,
    /// What the table and the heat map show.
    #[arg(long, value_enum, default_value_t = Show::Cosine)]
    show: Show,
    /// Draw a heat map into an .svg or .png file.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    plot: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// A number for a text and a picture.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
pub enum Show {
    /// The cosine of their features, from -1 to 1.
    Cosine,
    /// The cosine divided by the model's temperature.
    Scaled,
    /// The probability of the text for the picture, if one of these texts is right.
    TextForImage,
    /// The probability of the picture for the text, if one of these pictures is right.
    ImageForText,
}

impl Show {
    fn of(self, found: &Similarities) -> Vec<Vec<f32>> {
        match self {
            Show::Cosine => found.cosine.clone(),
            Show::Scaled => found.scaled(),
            Show::TextForImage => found.text_for_image(),
            Show::ImageForText => found.image_for_text(),
        }
    }

    /// Whether the numbers are probabilities.
    fn is_share(self) -> bool {
        matches!(self, Show::TextForImage | Show::ImageForText)
    }

    /// What the numbers are, in a sentence.
    fn sentence(self, temperature: f32) -> String {
        match self {
            Show::Cosine => "Cosines of their features.".into(),
            Show::Scaled => format!("Cosines of their features, divided by the temperature {temperature}."),
            Show::TextForImage => "How likely each text is for a picture: a softmax down each column.".into(),
            Show::ImageForText => "How likely each picture is for a text: a softmax along each row.".into(),
        }
    }
}

impl Similarity {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of the model, of the pictures and of the texts, and of writing.
    pub fn main(&self) -> Outcome {
        let texts = read_texts(&self.text)?;
        let plot = self.plot.as_ref().map(|file| self.plot_file(file, texts.len())).transpose()?;
        let model = self.model.open()?;
        let tokens = tokens(&model, &texts)?;
        warn_of_features(&model, &texts)?;
        let (images, thumbs) = self.embed(&model, plot.is_some())?;
        let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
        let found = Similarities::new(&model.text_features(&tokens)?, &images, model.temperature())?;
        if let Some(file) = plot {
            let font = Font::built_in()?;
            let (values, names) = (self.show.of(&found), self.names());
            let what = (self.show.sentence(found.temperature), self.show.is_share());
            let figure = SimilarityFigure::new(&font, what, &values, &texts, &names, thumbs);
            file.write(&font, &figure)?;
        }
        let mut out = io::stdout().lock();
        if self.json {
            let json = json!({
                "texts": texts,
                "images": self.image.iter().map(|i| i.to_string_lossy()).collect::<Vec<_>>(),
                "temperature": found.temperature,
                "cosine": found.cosine,
                "scaled": found.scaled(),
                "text_for_image": found.text_for_image(),
                "image_for_text": found.image_for_text(),
            });
            writeln!(out, "{json:#}")?;
        } else {
            self.print(&mut out, &texts, &self.show.of(&found))?;
        }
        Ok(())
    }

    /// The file of the heat map, checked.
    fn plot_file(&self, file: &Path, texts: usize) -> Result<PlotFile> {
        let plot = PlotFile::new("plot", file.as_os_str())?;
        if self.image.iter().any(|image| plot.is(image)) {
            return Err(Error::argument(file.display(), "is one of the pictures and would be overwritten"));
        }
        let ([max, cells], images) = (MAX_DRAWN, self.image.len());
        if texts.max(images) > max || texts * images > cells {
            let problem = format!(
                "{texts} texts and {images} pictures are too many to draw; at most {max} of each and {cells} cells are"
            );
            return Err(Error::argument("plot", problem));
        }
        Ok(plot)
    }

    /// Features of the pictures, and the pictures as they are drawn, if they are.
    fn embed(&self, model: &BitGen, drawn: bool) -> Result<(Vec<Vec<f32>>, Vec<Image>)> {
        let (mut features, mut thumbs, bar) = (Vec::new(), Vec::new(), Bar::new("embedding"));
        for files in self.image.chunks(BATCH) {
            let what = files.first().map_or(String::new(), |f| f.display().to_string());
            let _goes_on = bar.show(&Progress { done: features.len(), total: self.image.len(), what });
            let images = open_images(files)?;
            features.extend(model.image_features(&images)?);
            if drawn {
                for image in &images {
                    thumbs.extend(SimilarityFigure::thumb(image, self.image.len())?);
                }
            }
        }
        bar.end();
        Ok((features, thumbs))
    }

    /// The pictures' file names; whole paths if two of the names are equal.
    fn names(&self) -> Vec<String> {
        let name = |path: &PathBuf| path.file_name().map(|name| name.to_string_lossy().into_owned());
        let names: Vec<String> = self.image.iter().filter_map(name).collect();
        let all_differ = names.iter().collect::<HashSet<_>>().len() == self.image.len();
        if all_differ { names } else { self.image.iter().map(|path| path.display().to_string()).collect() }
    }

    fn print(&self, out: &mut impl Write, texts: &[String], values: &[Vec<f32>]) -> io::Result<()> {
        let cell = |value: f32| match self.show {
            Show::Cosine => format!("{value:.3}"),
            Show::Scaled => format!("{value:.2}"),
            Show::TextForImage | Show::ImageForText => format!("{:.1} %", 100.0 * value),
        };
        let names = self.names();
        let at = |text: usize, image: usize| {
            values.get(text).and_then(|row| row.get(image)).map_or(String::new(), |&v| cell(v))
        };
        let (rows, columns, turned) =
            if names.len() > MAX_COLUMNS { (&names[..], texts, true) } else { (texts, &names[..], false) };
        let header: Vec<&str> = [""].into_iter().chain(columns.iter().map(String::as_str)).collect();
        let line = |(r, name): (usize, &String)| {
            let cells = (0..columns.len()).map(|c| if turned { at(c, r) } else { at(r, c) });
            [name.clone()].into_iter().chain(cells).collect::<Vec<String>>()
        };
        table(out, &header, &rows.iter().enumerate().map(line).collect::<Vec<_>>())
    }
}
