//! Golden files: what the original code computed for small models.
#![allow(dead_code)] // Each test uses a part.

use std::path::PathBuf;

use safetensors::{Dtype, SafeTensors};

/// The folder of golden data: `TERNION_GOLDENS`, else `tests/golden`.
pub fn golden_root() -> PathBuf {
    let own = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::env::var_os("TERNION_GOLDENS").map_or_else(own, PathBuf::from)
}

/// A safetensors file of golden data, in memory.
pub struct Golden {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Golden {
    /// Opens a file below [`golden_root`].
    pub fn open(path: &str) -> Self {
        let path = golden_root().join(path);
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Golden { path, bytes }
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.file().names().into_iter().map(str::to_owned).collect();
        names.sort();
        names
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.tensor(name, None).0
    }

    /// Elements of an F32 tensor.
    pub fn f32s(&self, name: &str) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(&self.tensor(name, Some(Dtype::F32)).1)
    }

    /// Elements of an I32 tensor.
    pub fn i32s(&self, name: &str) -> Vec<i32> {
        bytemuck::pod_collect_to_vec(&self.tensor(name, Some(Dtype::I32)).1)
    }

    /// Elements of an I8 tensor.
    pub fn i8s(&self, name: &str) -> Vec<i8> {
        bytemuck::pod_collect_to_vec(&self.tensor(name, Some(Dtype::I8)).1)
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap_or_else(|e| panic!("{}: {e}", self.path.display()))
    }

    fn tensor(&self, name: &str, dtype: Option<Dtype>) -> (Vec<usize>, Vec<u8>) {
        let view = self.file();
        let view = view.tensor(name).unwrap_or_else(|e| panic!("{}: {name}: {e}", self.path.display()));
        assert!(dtype.is_none_or(|d| d == view.dtype()), "{name} is {:?}", view.dtype());
        (view.shape().to_vec(), view.data().to_vec())
    }
}
