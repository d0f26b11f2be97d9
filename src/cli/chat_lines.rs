//! The lines of a conversation: commands, and what they name.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;

/// What `/help` shows.
pub const HELP: &str = "\
/image FILE      begin a new conversation about a picture
/system TEXT     begin a new conversation in which the model is told this first; without a text, nothing
/reset           begin a new conversation about the same pictures
/retry           answer the last question again
/undo            take the last question and its answer back
/set NAME VALUE  generate with another option of `ternion chat --help`, as temp 0.8; without a name, show them
/save FILE       keep the conversation in a file
/load FILE       go on with one that was kept
/stats           show counts, times and experts of the last answer
/quit            end (also Ctrl-D)
/help            show this
Anything else is a question; one of several lines stands between \"\"\" and \"\"\". Ctrl-C ends an answer.";

/// What a line asks for.
#[derive(Debug, PartialEq)]
pub enum Line<'a> {
    Nothing,
    Quit,
    Reset,
    Retry,
    Undo,
    Stats,
    Help,
    Image(&'a str),
    System(&'a str),
    Set(&'a str),
    Save(&'a str),
    Load(&'a str),
    Unknown(&'a str),
    Question(&'a str),
}

/// All commands; behind some of them a blank, for what they name.
const COMMANDS: [&str; 11] =
    ["/image ", "/system ", "/reset", "/retry", "/undo", "/set ", "/save ", "/load ", "/stats", "/quit", "/help"];
/// Those that name files.
const OF_FILES: [&str; 3] = ["/image ", "/save ", "/load "];

/// What a line may become that begins so: commands, and the files that they name.
pub fn completions(before: &str) -> Vec<String> {
    if let Some(command) = OF_FILES.iter().find(|command| before.starts_with(**command)) {
        let written = &before[command.len()..];
        let (folder, begun) = written.rsplit_once('/').map_or(("", written), |(folder, begun)| (folder, begun));
        let shown = &written[..written.len() - begun.len()];
        let folder =
            if shown.is_empty() { ".".into() } else { file_path(if folder.is_empty() { "/" } else { folder }) };
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let name = |entry: std::fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let end = if entry.path().is_dir() { "/" } else { "" };
            let hidden = name.starts_with('.') && begun.is_empty();
            (name.starts_with(begun) && !hidden).then(|| format!("{command}{shown}{name}{end}"))
        };
        let mut all: Vec<String> = entries.filter_map(name).collect();
        all.sort();
        return all;
    }
    let fits = |command: &&str| before.starts_with('/') && command.starts_with(before);
    COMMANDS.into_iter().filter(fits).map(str::to_owned).collect()
}

/// What ends a question of several lines, and begins it.
pub const BLOCK: &str = "\"\"\"";

/// The text of a question of several lines, from the line that begins it; `next` gives the lines behind, none at the end.
///
/// # Errors
/// Those of `next`.
pub fn block<E>(first: &str, mut next: impl FnMut() -> Result<Option<String>, E>) -> Result<String, E> {
    let mut text = String::new();
    let mut line = first.trim_start().trim_start_matches(BLOCK).to_owned();
    loop {
        if let Some(end) = line.find(BLOCK) {
            text += &line[..end];
            return Ok(text);
        }
        text += &line;
        match next()? {
            Some(more) => line = more,
            None => return Ok(text),
        }
        text.push('\n');
    }
}

/// What a line asks for.
pub fn parse(line: &str) -> Line<'_> {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    match (word, rest.trim()) {
        ("", _) => Line::Nothing,
        ("/quit" | "/exit", "") => Line::Quit,
        ("/reset", "") => Line::Reset,
        ("/retry", "") => Line::Retry,
        ("/undo", "") => Line::Undo,
        ("/stats", "") => Line::Stats,
        ("/help", "") => Line::Help,
        ("/system", text) => Line::System(text),
        ("/set", given) => Line::Set(given),
        ("/image", file) if !file.is_empty() => Line::Image(file),
        ("/save", file) if !file.is_empty() => Line::Save(file),
        ("/load", file) if !file.is_empty() => Line::Load(file),
        (word, _) if word.starts_with('/') => Line::Unknown(word),
        _ => Line::Question(line),
    }
}

/// The options that `/set` names, as the command line has them: each name with a value behind.
pub fn set_options(given: &str) -> Option<Vec<String>> {
    let words = shlex::split(given)?;
    let option = |pair: &[String]| match pair {
        [name, value] => Some(format!("--{}={value}", name.trim_start_matches('-').replace('_', "-"))),
        _ => None,
    };
    words.chunks(2).map(option).collect()
}

/// The file that a line names: as it is written, or as terminals write a file that is dragged into them, in quotes, with
/// escaped characters or as a file:// address; `~` is the user's folder. A file with the very name comes first.
pub fn file_path(written: &str) -> PathBuf {
    let literal = PathBuf::from(written);
    if literal.exists() {
        return literal;
    }
    if let Some(address) = written.strip_prefix("file://") {
        let path = address.strip_prefix("localhost").unwrap_or(address);
        // An address of Windows has a slash in front of the drive.
        let path = if cfg!(windows) { path.trim_start_matches('/') } else { path };
        return percent_decode_str(path).decode_utf8().map_or(literal, |path| path.as_ref().into());
    }
    let path = if cfg!(windows) {
        written.trim_matches('"').to_owned()
    } else {
        // One word as a shell reads it; several are a name with spaces.
        let words = shlex::split(written).and_then(|words| <[String; 1]>::try_from(words).ok());
        words.map_or_else(|| written.to_owned(), |[word]| word)
    };
    let in_home = written.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with(['/', '\\']));
    match (in_home, etcetera::home_dir()) {
        (Some(_), Ok(home)) => home.join(path.trim_start_matches('~').trim_start_matches(['/', '\\'])),
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn commands_are_told_from_questions() {
        assert_eq!(parse("  \n"), Line::Nothing);
        assert_eq!(parse("/image my cat.png\n"), Line::Image("my cat.png"));
        assert_eq!(parse("/image"), Line::Unknown("/image"));
        assert_eq!(parse("/quit\r\n"), Line::Quit);
        assert_eq!([parse("/system be kind"), parse("/system")], [Line::System("be kind"), Line::System("")]);
        assert_eq!(
            [parse("/save my talk"), parse("/save"), parse("/undo it")],
            [Line::Save("my talk"), Line::Unknown("/save"), Line::Unknown("/undo"),]
        );
        assert_eq!(parse("what is 1 / 2?"), Line::Question("what is 1 / 2?"));
    }

    #[test]
    fn commands_and_files_are_completed() {
        assert_eq!(completions("/re"), ["/reset", "/retry"]);
        assert_eq!(completions("/").len(), COMMANDS.len());
        assert!(COMMANDS.iter().all(|command| HELP.contains(command.trim_end())));
        assert!(completions("re").is_empty() && completions("").is_empty() && completions("/none").is_empty());
        let dir = tempfile::TempDir::new().expect("a folder");
        std::fs::create_dir(dir.path().join("pictures")).expect("made");
        ["pic 1.png", "other", ".hidden"].iter().for_each(|f| std::fs::write(dir.path().join(f), "").expect("written"));
        let at = dir.path().to_str().expect("UTF-8");
        let found = completions(&format!("/image {at}/pic"));
        assert_eq!(found, [format!("/image {at}/pic 1.png"), format!("/image {at}/pictures/")]);
        assert_eq!(completions(&format!("/load {at}/")).len(), 3);
        assert!(completions(&format!("/save {at}/none/x")).is_empty());
    }

    #[test]
    fn a_question_of_several_lines_ends_with_its_marks_or_the_input() {
        let of = |lines: &[&str]| {
            let mut rest = lines[1..].iter();
            block(lines[0], || Ok::<_, ()>(rest.next().map(|line| (*line).to_owned())))
        };
        assert_eq!(of(&["\"\"\"one\"\"\" more"]), Ok("one".into()));
        assert_eq!(of(&["\"\"\"one", "", "two \"\"\"", "three"]), Ok("one\n\ntwo ".into()));
        assert_eq!(of(&["\"\"\"", "/quit"]), Ok("\n/quit".into()));
        assert_eq!(block("\"\"\"a", || Err(3)), Err(3));
    }

    #[test]
    fn settings_are_options_of_the_command_line() {
        let options = |given| set_options(given).map(|all| all.join(" "));
        assert_eq!(options("temp 0.8").as_deref(), Some("--temp=0.8"));
        assert_eq!(options("--top_k -1 stop 'a b'").as_deref(), Some("--top-k=-1 --stop=a b"));
        assert_eq!(options("").as_deref(), Some(""));
        assert_eq!([options("temp"), options("temp '1")], [None, None]);
    }

    #[test]
    fn a_dragged_picture_is_found() {
        let dir = tempfile::TempDir::new().expect("a folder");
        let file = dir.path().join("my pics").join("a b.png");
        std::fs::create_dir(file.parent().expect("a folder")).expect("made");
        std::fs::write(&file, "").expect("written");
        let path = file.to_str().expect("UTF-8");
        assert_eq!(file_path(path), file);
        assert_eq!(file_path(&format!("\"{path}\"")), file);
        if cfg!(unix) {
            assert_eq!(file_path(&format!("'{path}'")), file);
            assert_eq!(file_path(&path.replace(' ', "\\ ")), file);
            let address = path.replace(' ', "%20");
            assert_eq!(file_path(&format!("file://{address}")), file);
            assert_eq!(file_path(&format!("file://localhost{address}")), file);
            let odd = dir.path().join("it's \\ \"odd\".png");
            std::fs::write(&odd, "").expect("written");
            assert_eq!(file_path(odd.to_str().expect("UTF-8")), odd, "the very name comes first");
        }
        let home = etcetera::home_dir().expect("a home");
        assert_eq!(file_path("~/no such picture.png"), home.join("no such picture.png"));
        assert_eq!(file_path("~no_such_user/a.png"), Path::new("~no_such_user/a.png"));
        assert_eq!(file_path("no such picture.png"), Path::new("no such picture.png"));
    }
}
