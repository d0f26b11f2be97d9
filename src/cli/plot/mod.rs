//! Pictures of what a model did, as SVG or PNG.
//!
//! A [`Figure`] knows its size and draws itself on a [`Paper`]; [`PlotFile`] makes a file of it. [`heat`] has colours and
//! cells, [`text`] the font, which is built in: a machine that runs models may have none.

mod attention;
mod bars;
mod heat;
mod options;
mod routing;
mod similarity;
mod text;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::imageops::{FilterType, resize};
use image::{ExtendedColorType, ImageEncoder as _, RgbImage, codecs::png::PngEncoder};
use plotters::coord::Shift;
use plotters::prelude::{BitMapBackend, DrawingArea, DrawingAreaErrorKind, DrawingBackend, IntoDrawingArea};
use plotters::prelude::{RGBColor, SVGBackend, WHITE};
use ternion::files::{Image, whole};
use ternion::{Error, Result};

use attention::AttentionFigure;
pub use bars::BarsFigure;
pub use options::PlotArgs;
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

/// The picture at the size at which it is drawn: its longer side is `most` pixels.
///
/// # Errors
/// [`Error::Argument`] if its bytes are not those of its size.
fn fitted(picture: &Image, most: u32) -> Result<Image> {
    let (w, h) = (picture.width as u32, picture.height as u32);
    let scale = f64::from(most) / f64::from(w.max(h));
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
    /// [`Error::Argument`] for a name that does not end in .svg or .png, [`Error::Io`] if nothing can be written there.
    pub fn new(option: &str, path: &OsStr) -> Result<Self> {
        let path = PathBuf::from(path);
        let extension = path.extension().and_then(OsStr::to_str).map(str::to_ascii_lowercase);
        let format = match extension.as_deref() {
            Some("svg") => Format::Svg,
            Some("png") => Format::Png,
            _ => {
                let problem =
                    format!("{} is no picture's name, expected one that ends in .svg or .png", path.display());
                return Err(Error::argument(option, problem));
            }
        };
        whole::check_writable(&path)?;
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
        real(&self.path).is_some_and(|own| Some(own) == real(path))
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
        whole::write(&self.path, bytes)
    }
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
        ">\n<style>@font-face{{font-family:{name};src:url(data:font/ttf;base64,{font})}}</style>\n",
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
    let written = PngEncoder::new(&mut bytes).write_image(rgb, width, height, ExtendedColorType::Rgb8);
    written.map_err(|e| format!("cannot be encoded: {e}"))?;
    Ok(bytes)
}
