//! How a checkpoint's configuration says that its matrices are quantised.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::files::Quantisation;
use crate::models::section::Section;

/// Quantisation of a checkpoint's matrices, as far as its configuration says it: in GGUF files each tensor does.
#[derive(Debug, Clone, PartialEq)]
pub struct FileQuantisation {
    /// That of the layers' matrices.
    pub layers: Option<Quantisation>,
    /// That of the embedding table and the head.
    pub head: Option<Quantisation>,
    /// Epsilon of the norm that each matrix of the layers has for itself, where they have one.
    pub own_norms: Option<f32>,
    /// Whether the layers' matrices were trained with 8-bit activations, a scale a row.
    pub row_activations: bool,
}

/// Modules that stay in full precision unless a configuration names others.
const KEPT: [&str; 2] = ["lm_head", "embed_tokens"];

impl FileQuantisation {
    /// None at all.
    const NONE: FileQuantisation =
        FileQuantisation { layers: None, head: None, own_norms: None, row_activations: false };

    /// Reads `quantization_config` (transformers) or `quantization` (MLX).
    ///
    /// # Errors
    /// [`Error::Config`] with the key, for methods that are not read.
    pub fn read(root: &Section) -> Result<Self> {
        if let Some(mlx) = root.inner("quantization", "quantization") {
            return Self::affine(&mlx);
        }
        let Some(section) = root.inner("quantization_config", "quantization_config") else { return Ok(Self::NONE) };
        match section.text("quant_method")? {
            Some("bitnet") => Self::bitnet(&section),
            None if section.value("group_size").is_some() => Self::affine(&section),
            method => {
                let problem = format!("is {:?}; bitnet is read", method.unwrap_or("missing"));
                Err(Error::config(section.key("quant_method"), problem))
            }
        }
    }

    fn affine(section: &Section) -> Result<Self> {
        if let Some(mode) = section.text("mode")?.filter(|&mode| mode != "affine") {
            return Err(Error::config(section.key("mode"), format!("is {mode:?}; affine is read")));
        }
        let (bits, group) = (section.size("bits", 8)?, section.size("group_size", 256)?);
        if !matches!(bits, 1 | 2) {
            return Err(Error::config(section.key("bits"), format!("is {bits}; 1 and 2 are read")));
        }
        let all = Some(Quantisation::Affine { bits, group });
        Ok(FileQuantisation { layers: all, head: all, ..Self::NONE })
    }

    fn bitnet(section: &Section) -> Result<Self> {
        let unknown = |key: &str, value: &str, known: &str| {
            Err(Error::config(section.key(key), format!("is {value:?}, expected {known}")))
        };
        let divides = match section.text("linear_class")? {
            None | Some("bitlinear") => true,
            Some("autobitlinear") => false,
            Some(other) => return unknown("linear_class", other, "bitlinear or autobitlinear"),
        };
        let online = match section.text("quantization_mode")? {
            None | Some("offline") => false,
            Some("online") => true,
            Some(other) => return unknown("quantization_mode", other, "offline or online"),
        };
        let layers = if online { Quantisation::Online } else { Quantisation::PackedRows { divides } };
        check_kept(section)?;
        let own_norms = match section.truth("use_rms_norm")? {
            Some(true) if online => Some(section.number("rms_norm_eps", 0.0..=1.0)?.unwrap_or(1e-6) as f32),
            Some(true) => {
                let problem = "is true beside packed matrices; with matrices quantised online it is read";
                return Err(Error::config(section.key("use_rms_norm"), problem));
            }
            Some(false) | None => None,
        };
        Ok(FileQuantisation { layers: Some(layers), own_norms, row_activations: true, ..Self::NONE })
    }
}

/// Checks that only modules outside of layers stay in full precision: which of a layer's do is told by the packed bytes, but
/// not where matrices are quantised online.
fn check_kept(section: &Section) -> Result<()> {
    let key = "modules_to_not_convert";
    let names = match section.value(key) {
        None => return Ok(()),
        Some(Value::Array(names)) => names,
        Some(value) => return Err(Error::config(section.key(key), format!("is {value}, expected a list"))),
    };
    let known = |name: &Value| name.as_str().is_some_and(|name| KEPT.contains(&name.rsplit('.').next().unwrap_or("")));
    match names.iter().find(|name| !known(name)) {
        Some(name) => Err(Error::config(section.key(key), format!("has {name}; {} may be there", KEPT.join(" and ")))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(config: Value) -> Result<FileQuantisation> {
        FileQuantisation::read(&Section { file: "config.json", name: "", map: config.as_object().unwrap() })
    }

    #[test]
    fn the_scale_of_packed_rows_goes_the_way_of_its_class() {
        let bitnet = |more: Value| {
            let mut section = json!({"quant_method": "bitnet"});
            section.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            read(json!({"quantization_config": section})).unwrap()
        };
        let layers = |more| bitnet(more).layers.unwrap();
        assert_eq!(layers(json!({})), Quantisation::PackedRows { divides: true });
        assert_eq!(layers(json!({"linear_class": "autobitlinear"})), Quantisation::PackedRows { divides: false });
        let online = bitnet(json!({"quantization_mode": "online", "use_rms_norm": true, "rms_norm_eps": 1e-5}));
        assert_eq!((online.layers, online.own_norms), (Some(Quantisation::Online), Some(1e-5)));
        assert_eq!((online.head, online.row_activations), (None, true));
        assert_eq!(bitnet(json!({"modules_to_not_convert": ["lm_head"]})).own_norms, None);
    }

    #[test]
    fn words_of_codes_are_everywhere() {
        let all = read(json!({"quantization": {"group_size": 128, "bits": 2, "mode": "affine"}})).unwrap();
        assert_eq!((all.layers, all.head), (Some(Quantisation::Affine { bits: 2, group: 128 }), all.layers));
        assert_eq!(read(json!({})).unwrap(), FileQuantisation::NONE);
    }

    #[test]
    fn what_is_not_read_is_named() {
        let method = |section: Value| json!({"quantization_config": section});
        for (config, said) in [
            (method(json!({"quant_method": "gptq"})), "quantization_config.quant_method"),
            (method(json!({"quant_method": "bitnet", "linear_class": "x"})), "quantization_config.linear_class"),
            (
                method(json!({"quant_method": "bitnet", "quantization_mode": "x"})),
                "quantization_config.quantization_mode",
            ),
            (method(json!({"quant_method": "bitnet", "use_rms_norm": true})), "quantization_config.use_rms_norm"),
            (
                method(json!({"quant_method": "bitnet", "modules_to_not_convert": ["down_proj"]})),
                "quantization_config.modules_to_not_convert",
            ),
            (json!({"quantization": {"group_size": 64, "bits": 4}}), "quantization.bits"),
            (json!({"quantization": {"group_size": 64, "bits": 2, "mode": "mxfp4"}}), "quantization.mode"),
        ] {
            let error = read(config.clone()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("config.json: {said}")), "{config}: {error}");
        }
    }
}
