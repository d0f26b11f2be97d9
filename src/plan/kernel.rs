//! What an op tells a GPU backend: shader, variant, parameters, grid.

use bytemuck::Pod;
use serde::{Deserialize, Serialize};

use crate::plan::Step;
use crate::tensor::{Lead, Spec};

/// A shader's text, by the name of its file without `.wgsl`. Backends bound the loops of all but this crate's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source {
    /// File stem: `rms_norm` for `shaders/rms_norm.wgsl`.
    pub name: &'static str,
    /// WGSL with `#import` and `#ifdef` lines.
    pub text: &'static str,
    /// One of this crate's: tests see to it that each of its loops ends.
    own: bool,
}

impl Source {
    /// A shader of an op outside of this crate.
    pub fn new(name: &'static str, text: &'static str) -> Self {
        Source { name, text, own: false }
    }

    /// A shader of this crate, for the macro `shader` alone.
    pub(crate) fn own(name: &'static str, text: &'static str) -> Self {
        Source { name, text, own: true }
    }

    /// Whether its loops are known to end.
    pub(crate) fn is_own(self) -> bool {
        self.own
    }
}

/// The [`Source`] of `shaders/NAME.wgsl`.
#[macro_export]
#[doc(hidden)]
macro_rules! shader {
    ($name:literal) => {
        $crate::plan::Source::own($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $name, ".wgsl")))
    };
}

/// One dispatch, described.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The shader.
    pub source: Source,
    /// What changes the language of the shader: names that `#ifdef` asks for.
    pub defines: Vec<&'static str>,
    /// What changes a number in it: WGSL `override` constants.
    pub overrides: Vec<(&'static str, f64)>,
    /// The uniform at binding 1.
    pub params: Params,
    /// How many workgroups.
    pub grid: Grid,
}

/// A second dispatch of a node, behind that of its [`Kernel`].
#[derive(Debug, Clone)]
pub struct Second {
    /// The kernel.
    pub kernel: Kernel,
    /// 32-bit words of memory that both kernels bind behind the outputs, for what the first one leaves to the second.
    pub words: usize,
}

/// The bytes of a kernel's `Params` struct and the names of its fields, four bytes each, in order.
#[derive(Debug, Clone)]
pub struct Params {
    /// The struct's bytes.
    pub bytes: Vec<u8>,
    /// Field names; a test compares them and their offsets with the shader's.
    pub fields: &'static [&'static str],
}

/// A struct of 4-byte fields that is a shader's `Params`.
pub trait ParamStruct: Pod {
    /// Names of the fields, in order.
    const FIELDS: &'static [&'static str];

    /// The struct as the words of a uniform.
    fn params(&self) -> Params {
        Params { bytes: bytemuck::bytes_of(self).to_vec(), fields: Self::FIELDS }
    }
}

/// Declares a `Params` struct of `u32` and `f32` fields whose layout the shader test checks.
#[macro_export]
#[doc(hidden)]
macro_rules! params {
    ($name:ident { $($field:ident : $ty:ty),+ $(,)? }) => {
        #[repr(C)]
        #[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        struct $name { $($field: $ty),+ }
        impl $crate::plan::ParamStruct for $name {
            const FIELDS: &'static [&'static str] = &[$(stringify!($field)),+];
        }
    };
}

/// Workgroups along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Always as many.
    Fixed(usize),
    /// `ceil(count · times / per)`, where `count` is what the step uses of `max`.
    Count {
        /// What counts.
        lead: Lead,
        /// The most.
        max: usize,
        /// Threads for each.
        times: usize,
        /// Threads a workgroup.
        per: usize,
    },
    /// `ceil(count · times / per) + more`, or none where nothing counts: blocks of groups of unknown sizes.
    Blocks {
        /// What counts.
        lead: Lead,
        /// The most.
        max: usize,
        /// Members for each.
        times: usize,
        /// Members of a block.
        per: usize,
        /// Groups, each of which may leave a block half full.
        more: usize,
    },
    /// `ceil(context / per)`, at most `most`: pieces of the step's longest context.
    Context {
        /// Keys of a piece.
        per: usize,
        /// The most.
        most: usize,
    },
    /// 1 where the step's longest context is over `keys`, else none.
    Beyond {
        /// Keys.
        keys: usize,
    },
}

impl Extent {
    /// Enough workgroups of `per` threads for every row of the last dimension of `spec`, `times` threads a row.
    pub fn rows(spec: &Spec, times: usize, per: usize) -> Self {
        let max = spec.shape.first().copied().unwrap_or(1);
        Extent::Count { lead: spec.lead, max, times: times * spec.rows_per_lead(), per }
    }

    /// The number in this step.
    pub fn resolve(self, step: &Step) -> usize {
        match self {
            Extent::Fixed(n) => n,
            Extent::Count { lead, max, times, per } => (step.count(lead, max) * times).div_ceil(per),
            Extent::Blocks { lead, max, times, per, more } => match step.count(lead, max) * times {
                0 => 0,
                members => members.div_ceil(per) + more,
            },
            Extent::Context { per, most } => (step.context as usize).div_ceil(per).clamp(1, most),
            Extent::Beyond { keys } => usize::from(step.context as usize > keys),
        }
    }
}

/// Workgroups along x, y and z.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid(pub [Extent; 3]);

impl Grid {
    /// One axis.
    pub fn x(x: Extent) -> Self {
        Grid([x, Extent::Fixed(1), Extent::Fixed(1)])
    }

    /// Two axes.
    pub fn xy(x: Extent, y: Extent) -> Self {
        Grid([x, y, Extent::Fixed(1)])
    }
}

/// What an adapter can do, as far as kernels choose by it. Tests mask these to run every variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// Subgroup operations in compute shaders.
    pub subgroups: bool,
    /// The 4×8-bit integer dot product is native (elsewhere it is emulated, or done in floats).
    pub dot4: bool,
    /// A CPU plays the GPU, in subgroups of at least 8 lanes: it loads words lane by lane, so that kernels load each
    /// once and pass it from lane to lane. Only with `subgroups`.
    pub shuffles: bool,
    /// Kernels can unpack 16-bit floats; without it only f32 weights and caches run.
    pub half: bool,
    /// Largest range of a buffer that a kernel can bind, in bytes; larger weights are split.
    pub max_binding: u64,
    /// What kernels choose where every choice is correct.
    pub tuning: Tuning,
}

/// Numbers and variants that change how fast kernels are, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tuning {
    /// Shares of the columns in a workgroup of a ternary product with few rows; at most 8 with `groups` multiplied.
    pub split: usize,
    /// Consecutive fours of outputs of a thread of a ternary product with few rows: 1, 2 or 4.
    pub quads: usize,
    /// Most tiles in a workgroup of a layer of one row or few in one launch, which share the work of making the codes.
    pub groups: usize,
    /// Lanes that share the outputs of a dense product with few rows, and groups of them in a workgroup: 32 to 128 in all.
    pub dense: [usize; 2],
    /// Whether neighbouring threads of an attention with few rows take different keys, not neighbouring parts of one.
    pub spread: bool,
    /// Keys up to which an attention with few rows does not cut a context into pieces.
    pub piece: usize,
    /// Whether a product of 32 bits does two columns of a ternary product, rather than a dot product of bytes four.
    pub pairs: bool,
}

impl Tuning {
    /// For GPUs: many small workgroups.
    pub const HARDWARE: Tuning =
        Tuning { split: 4, quads: 1, groups: 2, dense: [32, 2], spread: false, piece: 128, pairs: false };
    /// For drivers that compute on the CPU, where a barrier is dear and a load costs the same whatever its neighbours do.
    pub const SOFTWARE: Tuning =
        Tuning { split: 1, quads: 4, groups: 4, dense: [4, 8], spread: true, piece: 512, pairs: true };
    /// Values that differ in everything, for tests.
    pub const ALL: [Tuning; 3] = [
        Self::HARDWARE,
        Self::SOFTWARE,
        Tuning { split: 2, quads: 2, groups: 4, dense: [16, 4], spread: true, piece: 48, pairs: true },
    ];
}

impl Caps {
    /// No optional capability, and a binding limit that splits nothing: what the CPU backend reports.
    pub const PLAIN: Caps = Caps {
        subgroups: false,
        dot4: false,
        shuffles: false,
        half: true,
        max_binding: u64::MAX,
        tuning: Tuning::HARDWARE,
    };

    /// Every combination of the optional capabilities that `self` has.
    pub fn subsets(self) -> Vec<Caps> {
        let mut all = Vec::new();
        for bits in 0..8 {
            let caps = Caps { subgroups: bits & 1 != 0, dot4: bits & 2 != 0, shuffles: bits & 4 != 0, ..self };
            let had = |mine: bool, its: bool| mine || !its;
            if had(self.subgroups, caps.subgroups)
                && had(self.dot4, caps.dot4)
                && had(self.shuffles && caps.subgroups, caps.shuffles)
            {
                all.push(caps);
            }
        }
        all
    }

    /// The defines of the kernels that import `ternary_few`.
    pub fn few_rows(self) -> Vec<&'static str> {
        let Tuning { quads, pairs, .. } = self.tuning;
        if self.tables() {
            return vec!["TABLES"];
        }
        let flags = [(quads == 2, "QUADS2"), (quads == 4, "QUADS4"), (pairs || !self.dot4, "PAIRS")];
        flags.into_iter().filter_map(|(on, name)| on.then_some(name)).collect()
    }

    /// Whether ternary products of few rows look sums up that neighbouring lanes hold.
    pub fn tables(self) -> bool {
        self.shuffles && self.tuning.quads == 4
    }

    /// The defines that every kernel gets.
    pub fn defines(self) -> Vec<&'static str> {
        let flags = [(self.subgroups, "SUBGROUPS"), (self.dot4, "DOT4"), (self.shuffles, "SHUFFLES")];
        flags.into_iter().filter_map(|(on, name)| on.then_some(name)).collect()
    }
}
