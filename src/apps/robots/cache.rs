//! The keys and values that a BitGenModel's attention keeps from call to call.

use std::fmt;

use crate::apps::robots::attention_window::RobotAttention;
use crate::error::{Error, Result};
use crate::models::RobotSizes;

/// Keys and values of the texts so far, on the host: it can be cloned to continue a text in two ways. Made by
/// [`crate::apps::robots::RobotModel::cache`].
#[derive(Clone, PartialEq)]
pub struct RobotCache {
    pub(crate) attention: RobotAttention,
    pub(crate) tokens: usize,
    /// `[samples][keys]`: whether a key belongs to a token, rather than to padding.
    pub(crate) keep: Vec<Vec<bool>>,
    /// `[layers][k, v][samples]`, `[keys, width]` each.
    pub(crate) layers: Vec<[Vec<Vec<f32>>; 2]>,
    /// Of all heads side by side.
    width: usize,
}

impl fmt::Debug for RobotCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = f.debug_struct("RobotCache");
        all.field("attention", &self.attention).field("tokens", &self.tokens).field("keys", &self.len());
        all.field("samples", &self.keep.len()).finish_non_exhaustive()
    }
}

impl RobotCache {
    pub(crate) fn new(attention: RobotAttention, sizes: &RobotSizes, samples: usize) -> Self {
        let nothing = || vec![Vec::new(); samples];
        let layers = (0..sizes.layers).map(|_| [nothing(), nothing()]).collect();
        RobotCache { attention, tokens: 0, keep: vec![Vec::new(); samples], layers, width: sizes.kv_width() }
    }

    /// Tokens of a text so far.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Keys of a text that are kept.
    pub fn len(&self) -> usize {
        self.keep.first().map_or(0, Vec::len)
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keys and values `[keys, heads · width of a head]` of a sample in an attention layer; none if there is no such layer or sample.
    pub fn layer(&self, layer: usize, sample: usize) -> Option<[&[f32]; 2]> {
        let [k, v] = self.layers.get(layer)?;
        Some([k.get(sample)?, v.get(sample)?])
    }

    pub(crate) fn check(&self, attention: RobotAttention, sizes: &RobotSizes, samples: usize) -> Result<()> {
        let found = (self.attention, self.layers.len(), self.width, self.keep.len());
        let wanted = (attention, sizes.layers, sizes.kv_width(), samples);
        if found == wanted && self.len() <= sizes.sinks + sizes.window {
            return Ok(());
        }
        let say = |(attention, layers, d, samples): (RobotAttention, usize, usize, usize)| {
            format!("{samples} samples, {layers} layers of width {d}, {attention:?} attention")
        };
        Err(Error::argument("cache", format!("is of {}, expected {}", say(found), say(wanted))))
    }
}
