//! The variants of an op's kernel, by name, and which of them was chosen for which shapes.

use std::collections::BTreeMap;

use crate::plan::{Caps, FollowUp, Kernel};
use crate::tensor::Spec;

/// One way to compute a node. All variants of a node give the same results, up to the order of sums.
#[derive(Debug, Clone)]
pub struct Variant {
    /// Its name, unique among the variants of its op for one node.
    pub name: String,
    /// The capabilities that it uses: those of the device, or fewer.
    pub caps: Caps,
    /// The dispatch.
    pub kernel: Kernel,
    /// A second dispatch that completes the result of the first one.
    pub follow_up: Option<FollowUp>,
}

impl Variant {
    /// A variant of one dispatch.
    pub fn new(name: impl Into<String>, caps: &Caps, kernel: Kernel) -> Self {
        Variant { name: name.into(), caps: *caps, kernel, follow_up: None }
    }

    /// The same with a second dispatch.
    #[must_use]
    pub fn followed_by(self, follow_up: FollowUp) -> Self {
        Variant { follow_up: Some(follow_up), ..self }
    }

    /// Its dispatches, in order.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        [&self.kernel].into_iter().chain(self.follow_up.as_ref().map(|f| &f.kernel))
    }

    fn does_the_same(&self, other: &Self) -> bool {
        self.caps == other.caps && self.kernels().eq(other.kernels())
    }
}

/// The variants of a node that are possible on a device: the default, and others.
#[derive(Debug, Clone)]
pub struct Variants {
    usual: Variant,
    others: Vec<Variant>,
}

impl Variants {
    /// The default variant, which runs unless another one was chosen.
    pub fn usual(usual: Variant) -> Self {
        Variants { usual, others: Vec::new() }
    }

    /// Adds a variant, unless one with the same dispatches exists.
    #[must_use]
    pub fn or(mut self, other: Variant) -> Self {
        if !self.all().any(|v| v.does_the_same(&other)) {
            self.others.push(other);
        }
        self
    }

    /// Adds the default variant of `lesser`, which uses fewer capabilities; `suffix`, added to its name, says which ones it does not
    /// use.
    #[must_use]
    pub fn or_lesser(self, suffix: &str, lesser: Variants) -> Self {
        let Variant { name, .. } = &lesser.usual;
        let name = format!("{name}-{suffix}");
        self.or(Variant { name, ..lesser.usual })
    }

    /// All of them, the default first.
    pub fn all(&self) -> impl Iterator<Item = &Variant> {
        [&self.usual].into_iter().chain(&self.others)
    }

    /// The one of this name, else the default.
    pub fn take(self, name: Option<&str>) -> Variant {
        self.others.into_iter().find(|v| Some(v.name.as_str()) == name).unwrap_or(self.usual)
    }
}

/// A bucket of shapes: nodes of the same bucket run the same variant.
///
/// The text consists of the bucket of the rows (1, 2–8, 9–16, 17–64, more), then the dtypes and widths of the inputs and the widths
/// of the outputs, each rounded up to a power of two.
pub fn shape_bucket(inputs: &[&Spec], outputs: &[&Spec]) -> String {
    let rows = match inputs.first().map_or(1, |x| x.rows()) {
        0..=1 => "1 row",
        2..=8 => "2-8 rows",
        9..=16 => "9-16 rows",
        17..=64 => "17-64 rows",
        _ => "more rows",
    };
    let width = |spec: &Spec| spec.width().next_power_of_two();
    let read: Vec<String> = inputs.iter().map(|x| format!("{:?} {}", x.dtype, width(x))).collect();
    let written: Vec<String> = outputs.iter().map(|y| width(y).to_string()).collect();
    format!("{rows}: {} -> {}", read.join(", "), written.join(", "))
}

/// Names of variants by op and [`shape_bucket`]. Without a choice, the default variant runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choices(BTreeMap<(String, String), String>);

impl Choices {
    /// Chooses a variant for an op and a bucket.
    pub fn set(&mut self, op: &str, bucket: &str, variant: &str) {
        self.0.insert((op.to_owned(), bucket.to_owned()), variant.to_owned());
    }

    /// The name of the variant that was chosen.
    pub fn get(&self, op: &str, bucket: &str) -> Option<&str> {
        self.0.get(&(op.to_owned(), bucket.to_owned())).map(String::as_str)
    }

    /// Every choice: op, bucket, variant.
    pub fn iter(&self) -> impl Iterator<Item = [&str; 3]> {
        self.0.iter().map(|((op, bucket), variant)| [op.as_str(), bucket.as_str(), variant.as_str()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn shapes_near_each_other_share_a_bucket() {
        let spec = |rows: usize, width| Spec::fixed(&[rows, width], DType::F32);
        let bucket = |rows, width| shape_bucket(&[&spec(rows, width)], &[&spec(rows, 2 * width)]);
        assert_eq!(bucket(1, 700), "1 row: F32 1024 -> 2048");
        assert_eq!(bucket(2, 768), bucket(8, 1024));
        for (one, other) in [((1, 768), (2, 768)), ((8, 768), (9, 768)), ((64, 768), (65, 768)), ((1, 768), (1, 1025))]
        {
            assert_ne!(bucket(one.0, one.1), bucket(other.0, other.1), "{one:?} {other:?}");
        }
    }
}
