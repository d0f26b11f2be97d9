//! Plots of what a model did, as SVG or PNG.
//!
//! In reading order: `options` (`--routing` and `--attention` of a command); this file ([`Figure`] knows its size and draws
//! itself on a [`Paper`]; [`PlotFile`] writes it); the figures: `routing` (experts by layer and token), `attention` (over
//! pictures), `similarity` (texts and pictures), `bars` (rates of a benchmark), `ratios` (of two); what they are drawn with: [`heat`] (colours
//! and cells) and [`text`] (the font, which is built in, since a machine that runs models may have none).

mod attention;
mod bars;
mod heat;
mod options;
mod ratios;
mod routing;
mod similarity;
mod text;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::RgbImage;
use image::imageops::{FilterType, resize};
use plotters::coord::Shift;
use plotters::prelude::{BitMapBackend, DrawingArea, DrawingAreaErrorKind, DrawingBackend, IntoDrawingArea};
use plotters::prelude::{RGBColor, SVGBackend, WHITE};
use same_file::is_same_file;
use ternion::files::{Image, atomic};
use ternion::{Error, Result};

use attention::AttentionFigure;
pub use bars::BarsFigure;
pub use options::PlotArgs;
pub use ratios::RatiosFigure;
use routing::RoutingFigure;
pub use similarity::SimilarityFigure;
pub use text::Font;
use text::Sharp;

/// Colour of text.
const INK: RGBColor = RGBColor(34, 34, 34);
/// Colour of lines and of less important text.
const GREY: RGBColor = RGBColor(110, 110, 110);
/// Colour of what belongs to the answer.
const ANSWER: RGBColor = RGBColor(24, 90, 188);

/// What marks a plot, near the beginning of its file: a text of PNG, a comment of SVG.
const SOFTWARE: (&str, &str) = ("Software", "ternion");
const COMMENT: &str = "<!-- drawn by ternion -->";
/// Bytes of the beginning that are searched for it.
const HEAD: u64 = 1024;

/// What drawing on a backend gives.
type Drawn<B, T = ()> = Result<T, DrawingAreaErrorKind<<B as DrawingBackend>::ErrorType>>;

/// White paper, in pixels from the top left.
pub struct Paper<'a, B: DrawingBackend> {
    area: DrawingArea<B, Shift>,
    font: &'a Font,
}

/// Something that can be drawn.
pub trait Figure {
    /// Width and height in pixels.
    fn size(&self) -> (u32, u32);

    /// Draws on paper of that size.
    ///
    /// # Errors
    /// Those of the backend.
    fn draw<B: DrawingBackend>(&self, paper: &Paper<B>) -> Drawn<B>;

    /// Pictures that are laid on the paper when all else is drawn, with the places of their top left corners.
    fn pictures(&self) -> Vec<(Image, (usize, usize))> {
        Vec::new()
    }
}

/// The picture at the size at which it is drawn: its longer side is `max` pixels.
///
/// # Errors
/// [`Error::Argument`] if its bytes are not those of its size.
fn fitted(picture: &Image, max: u32) -> Result<Image> {
    let (w, h) = (picture.width as u32, picture.height as u32);
    let scale = f64::from(max) / f64::from(w.max(h));
    let side = |n: u32| ((f64::from(n) * scale).round() as u32).max(1);
    let broken = || Error::argument("image", "its bytes are not those of its size");
    let rgb = RgbImage::from_raw(w, h, picture.rgb.clone()).ok_or_else(broken)?;
    let fitted = resize(&rgb, side(w), side(h), FilterType::CatmullRom);
    Image::from_rgb(side(w) as usize, side(h) as usize, fitted.into_raw())
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Format {
    Svg,
    Png,
}

/// A file for a figure. What can be wrong with it is found before anything slow begins.
#[derive(Debug)]
pub struct PlotFile {
    path: PathBuf,
    format: Format,
}

impl PlotFile {
    /// A file at `path`, which `option` asked for.
    ///
    /// # Errors
    /// [`Error::Argument`] for a name that does not end in .svg or .png and for a file that is not a plot, which would be
    /// replaced; [`Error::Io`] if nothing can be written there.
    pub fn new(option: &str, path: &OsStr) -> Result<Self> {
        let path = PathBuf::from(path);
        let extension = path.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase);
        let format = match extension.as_deref() {
            Some("svg") => Format::Svg,
            Some("png") => Format::Png,
            _ => {
                let problem = format!("{} does not end in .svg or .png", path.display());
                return Err(Error::argument(option, problem));
            }
        };
        if !is_replaceable(&path).map_err(Error::io(&path))? {
            let problem =
                "is not a plot that this program has drawn, and would be overwritten; give the name of a new file";
            return Err(Error::argument(path.display(), problem));
        }
        atomic::check_writable(&path)?;
        Ok(PlotFile { path, format })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether both are one file, or this is the file at `path`, by whatever names.
    pub fn is(&self, path: &Path) -> bool {
        let real = |path: &Path| {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            fs::canonicalize(path).ok().or_else(|| Some(fs::canonicalize(folder).ok()?.join(path.file_name()?)))
        };
        is_same_file(&self.path, path).unwrap_or(false) || real(&self.path).is_some_and(|own| Some(own) == real(path))
    }

    /// Draws and writes a figure: the whole file, or none.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn write(&self, font: &Font, figure: &impl Figure) -> Result<()> {
        let bytes = match self.format {
            Format::Svg => svg(font, figure),
            Format::Png => png(font, figure),
        };
        let bytes = bytes.map_err(|problem| Error::format(self.path.display(), problem))?;
        atomic::write(&self.path, bytes)
    }
}

/// Whether the file is missing, empty, drawn here, or not an ordinary file.
fn is_replaceable(path: &Path) -> io::Result<bool> {
    match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(e) => return Err(e),
        Ok(found) if !found.is_file() || found.len() == 0 => return Ok(true),
        Ok(_) => {}
    }
    let mut head = Vec::new();
    File::open(path)?.take(HEAD).read_to_end(&mut head)?;
    let (keyword, text) = SOFTWARE;
    let png = [b"tEXt", keyword.as_bytes(), &[0], text.as_bytes()].concat();
    let holds = |mark: &[u8]| head.windows(mark.len()).any(|bytes| bytes == mark);
    Ok(holds(&png) || holds(COMMENT.as_bytes()))
}

/// Draws on a backend.
fn draw<B: DrawingBackend>(backend: B, font: &Font, figure: &impl Figure) -> Result<(), String> {
    let area = backend.into_drawing_area();
    let paper = Paper { area, font };
    let drawn = paper.area.fill(&WHITE).and_then(|()| figure.draw(&paper)).and_then(|()| paper.area.present());
    drawn.map_err(|e| format!("cannot be drawn: {e}"))
}

fn svg(font: &Font, figure: &impl Figure) -> Result<Vec<u8>, String> {
    let mut svg = String::new();
    draw(SVGBackend::with_string(&mut svg, figure.size()), font, figure)?;
    // The font comes along, so that text is as wide as it was measured.
    let style = format!(
        ">\n{COMMENT}\n<style>@font-face{{font-family:{name};src:url(data:font/ttf;base64,{font})}}</style>\n",
        name = text::FAMILY,
        font = BASE64_STANDARD.encode(text::FONT),
    );
    let own = format!("font-family=\"{}\"", text::FAMILY);
    let or_similar = format!("font-family=\"{}, Helvetica, Arial, sans-serif\"", text::FAMILY);
    let mut svg = svg.replacen(">\n", &style, 1).replace(&own, &or_similar);
    let end = svg.rfind("</svg>").unwrap_or(svg.len());
    for (picture, (x, y)) in figure.pictures() {
        let data = BASE64_STANDARD.encode(encode(&picture.rgb, (picture.width as u32, picture.height as u32))?);
        let (w, h) = (picture.width, picture.height);
        let href = format!("data:image/png;base64,{data}");
        svg.insert_str(end, &format!("<image x=\"{x}\" y=\"{y}\" width=\"{w}\" height=\"{h}\" href=\"{href}\"/>\n"));
    }
    Ok(svg.into_bytes())
}

fn png(font: &Font, figure: &impl Figure) -> Result<Vec<u8>, String> {
    let (width, height) = figure.size();
    let mut rgb = vec![255; 3 * width as usize * height as usize];
    draw(Sharp::new(BitMapBackend::with_buffer(&mut rgb, (width, height)), font.clone()), font, figure)?;
    for (picture, (x, y)) in figure.pictures() {
        for (row, pixels) in picture.rgb.chunks_exact(3 * picture.width).enumerate() {
            let at = 3 * ((y + row) * width as usize + x);
            if let Some(target) = rgb.get_mut(at..at + pixels.len()) {
                target.copy_from_slice(pixels);
            }
        }
    }
    encode(&rgb, (width, height))
}

/// A PNG of red, green and blue bytes.
fn encode(rgb: &[u8], (width, height): (u32, u32)) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let (keyword, text) = SOFTWARE;
    let written = encoder
        .add_text_chunk(keyword.into(), text.into())
        .and_then(|()| encoder.write_header())
        .and_then(|mut writer| writer.write_image_data(rgb).and_then(|()| writer.finish()));
    written.map_err(|e| format!("cannot be encoded: {e}"))?;
    Ok(bytes)
}
