//! Names of repositories, from which other programs fetch models.

use std::path::Path;

use ternion::Error;

/// What to do about a path that is the name of a repository, as other programs take it.
pub fn elsewhere(path: &Path) -> Option<Error> {
    let text = path.to_str()?;
    let name = text.strip_prefix("hf:").unwrap_or(text);
    let (owner, model) = name.split_once('/')?;
    let is_name = |part: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(plain)
    };
    if path.exists() || !is_name(owner) || !is_name(model) || Path::new(owner).exists() {
        return None;
    }
    let problem = format!(
        "{text} is no file or folder here; models are read from files: fetch it first, for example with `hf download {name} \
         --local-dir {model}`, and give the folder, or the .gguf file in it"
    );
    Some(Error::argument("model", problem))
}
