//! The lines that were typed, of this conversation and of earlier ones: a file in the user's folder, for the user alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ternion::engine::user_cache;

/// The file, beside the choices of kernels.
const FILE: &str = "chat-history";
/// Lines that are kept; a file of twice as many is cut.
const MAX_LINES: usize = 1000;

/// Lines, the newest last. What goes wrong with the file is logged, and the lines are those of this conversation.
pub struct History {
    lines: Vec<String>,
    /// Where new lines go; none where the user keeps nothing (`TERNION_CACHE` is empty) or it cannot be written.
    file: Option<PathBuf>,
}

impl History {
    /// That of the user.
    pub fn open() -> Self {
        History::of(user_cache().map(|folder| folder.join(FILE)))
    }

    fn of(file: Option<PathBuf>) -> Self {
        let text = file.as_deref().and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        let all: Vec<String> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let history = History { lines: all[all.len().saturating_sub(MAX_LINES)..].to_vec(), file };
        if all.len() > 2 * MAX_LINES
            && let Some(file) = &history.file
            && let Err(error) = write(file, &history.lines, true)
        {
            log::warn!("{} cannot be cut: {error}", file.display());
        }
        history
    }

    /// All lines.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// Adds a line, unless there is nothing in it or the last one is the same.
    pub fn add(&mut self, line: &str) {
        if line.trim().is_empty() || self.lines.last().is_some_and(|last| last == line) {
            return;
        }
        self.lines.push(line.to_owned());
        if let Some(file) = &self.file
            && let Err(error) = write(file, &[line.to_owned()], false)
        {
            log::warn!("{} cannot be written: {error}", file.display());
            self.file = None;
        }
    }
}

/// Writes lines, each as a JSON string, in place of what the file holds or behind it.
fn write(file: &Path, lines: &[String], anew: bool) -> io::Result<()> {
    let mut text = String::new();
    for line in lines {
        text += &serde_json::to_string(line)?;
        text.push('\n');
    }
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    options(anew).open(file)?.write_all(text.as_bytes())
}

fn options(anew: bool) -> OpenOptions {
    let mut options = File::options();
    options.create(true).write(true).append(!anew).truncate(anew);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_in_the_next_conversation() {
        let dir = tempfile::TempDir::new().expect("a folder");
        let file = dir.path().join("new/chat-history");
        let mut history = History::of(Some(file.clone()));
        ["one", "one", " ", "two\nlines \"2\"", "ü"].iter().for_each(|line| history.add(line));
        let want = ["one", "two\nlines \"2\"", "ü"];
        assert_eq!(history.lines(), want);
        fs::write(&file, fs::read_to_string(&file).expect("a file") + "broken\n").expect("written");
        assert_eq!(History::of(Some(file.clone())).lines(), want);
        let many: Vec<String> = (0..2 * MAX_LINES).map(|i| i.to_string()).collect();
        write(&file, &many, false).expect("written");
        assert_eq!(History::of(Some(file.clone())).lines(), &many[MAX_LINES..]);
        assert_eq!(fs::read_to_string(&file).expect("a file").lines().count(), MAX_LINES, "the file is cut");
        let mut none = History::of(Some(dir.path().to_owned()));
        none.add("a");
        none.add("b");
        assert_eq!(none.lines(), ["a", "b"], "a file that cannot be written");
    }
}
