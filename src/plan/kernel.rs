//! A dispatch as an op describes it to a GPU backend: shader, defines, overrides, parameters, grid.

use bytemuck::Pod;

use crate::plan::Step;
use crate::tensor::{CountedBy, Spec};

/// A shader's text, by the path of its file below `shaders/`, without `.wgsl`. Backends bound the loops
/// of shaders from outside of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source {
    /// Folder and file stem: `norm/rms_norm` for `shaders/norm/rms_norm.wgsl`.
    pub name: &'static str,
    /// WGSL with `#import` and `#ifdef` lines.
    pub text: &'static str,
    /// Whether it belongs to this crate, whose tests check that every loop ends.
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

#[cfg(test)]
impl Source {
    /// The value of its `const` or `override` of this name, for tests that hold an op's own numbers against it.
    pub(crate) fn number(self, name: &str) -> Option<usize> {
        let number = |line: &str| {
            let rest = line.strip_prefix("const ").or_else(|| line.strip_prefix("override "))?;
            let value = rest.strip_prefix(name)?.strip_prefix(": u32 = ")?;
            value.split('u').next()?.parse().ok()
        };
        self.text.lines().find_map(number)
    }
}

/// The [`Source`] of `shaders/NAME.wgsl`.
macro_rules! shader {
    ($name:literal) => {
        $crate::plan::Source::own($name, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $name, ".wgsl")))
    };
}

pub(crate) use shader;

/// One dispatch, described.
#[derive(Debug, Clone, PartialEq)]
pub struct Kernel {
    /// The shader.
    pub source: Source,
    /// Names that `#ifdef` tests.
    pub defines: Vec<&'static str>,
    /// Values of WGSL `override` constants.
    pub overrides: Vec<(&'static str, f64)>,
    /// The uniform at binding 1.
    pub params: Params,
    /// Numbers of workgroups.
    pub grid: Grid,
}

/// A second dispatch of a node, behind that of its [`Kernel`], on the same inputs and outputs.
#[derive(Debug, Clone)]
pub struct FollowUp {
    /// The kernel.
    pub kernel: Kernel,
    /// 32-bit words of memory that both kernels bind behind the outputs, through which the first one passes data to the second.
    pub words: usize,
}

/// The bytes of a kernel's `Params` struct and the names of its fields, four bytes each, in order.
#[derive(Debug, Clone, PartialEq)]
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

pub(crate) use params;

/// Workgroups along one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// A constant number.
    Fixed(usize),
    /// `ceil(count · times / per)`, where `count` is what the step uses of `max`.
    Count {
        /// What counts.
        counted_by: CountedBy,
        /// Maximum.
        max: usize,
        /// Threads for each.
        times: usize,
        /// Threads per workgroup.
        per: usize,
    },
    /// `ceil(count · times / per) + more`, or 0 where `count` is 0: blocks of groups of unknown sizes.
    Blocks {
        /// What counts.
        counted_by: CountedBy,
        /// Maximum.
        max: usize,
        /// Members for each.
        times: usize,
        /// Members of a block.
        per: usize,
        /// Groups, each of which may leave a block half full.
        more: usize,
    },
    /// `ceil(context / per)`, at most `max`: chunks of the step's longest context.
    Context {
        /// Keys of a chunk.
        per: usize,
        /// Maximum.
        max: usize,
    },
    /// 1 where the step's longest context is over `keys`, else none.
    IfContextOver {
        /// Keys.
        keys: usize,
    },
}

impl Extent {
    /// Enough workgroups of `per` threads for every row of the last dimension of `spec`, `times` threads per row.
    pub fn rows(spec: &Spec, times: usize, per: usize) -> Self {
        let max = spec.shape.first().copied().unwrap_or(1);
        Extent::Count { counted_by: spec.counted_by, max, times: times * spec.vectors_per_row(), per }
    }

    /// The number in this step.
    pub fn resolve(self, step: &Step) -> usize {
        match self {
            Extent::Fixed(n) => n,
            Extent::Count { counted_by, max, times, per } => (step.count(counted_by, max) * times).div_ceil(per),
            Extent::Blocks { counted_by, max, times, per, more } => match step.count(counted_by, max) * times {
                0 => 0,
                members => members.div_ceil(per) + more,
            },
            Extent::Context { per, max } => (step.context as usize).div_ceil(per).clamp(1, max),
            Extent::IfContextOver { keys } => usize::from(step.context as usize > keys),
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
