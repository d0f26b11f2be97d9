//! `ternion chat`: what its lines do, through a pipe and on a terminal.
#![cfg(feature = "cli")]

mod support {
    pub mod cli;
    pub mod golden;
}

use support::cli::{Ran, assert_fails, fed, text};
use support::golden::golden_root;
use tempfile::TempDir;

/// The arguments of a chat on a small model, with more of them.
fn chat(more: &[&str]) -> Vec<String> {
    let (model, tokenizer) = (golden_root().join("embernet/tiny"), golden_root().join("tokenizer.json"));
    let (model, tokenizer) = (text(model), text(tokenizer));
    let usual = ["chat", "-m", &model, "--tokenizer", &tokenizer, "--device", "cpu", "-n", "4"];
    usual.iter().chain(more).map(|&arg| arg.to_owned()).collect()
}

/// A chat that reads these lines from a pipe.
fn piped(more: &[&str], lines: impl AsRef<[u8]>) -> Ran {
    let args = chat(more);
    fed(&args.iter().map(String::as_str).collect::<Vec<_>>(), lines.as_ref())
}

fn picture() -> String {
    text(golden_root().join("embernet/tiny/image_97x61.png"))
}

/// How many tokens the answers read, by the statistics of -v: of one conversation each adds to those before.
fn read_tokens(ran: &Ran) -> Vec<usize> {
    let counts = ran.err.lines().filter_map(|line| line.strip_prefix("prefill:")?.split_whitespace().next());
    counts.map(|n| n.parse().unwrap_or_else(|e| panic!("{e}: {}", ran.err))).collect()
}

#[test]
fn a_full_context_is_told_and_the_chat_goes_on_after_reset() {
    let one = piped(&[], "What is it?\n");
    assert_eq!(one.code, Some(0), "{}", one.err);
    let lines = format!("{}/reset\nWhat is it?\n", "What is it?\n".repeat(20));
    let ran = piped(&["-c", "60"], lines);
    assert_eq!(ran.code, Some(2), "{}", ran.err);
    let errors: Vec<&str> = ran.err.lines().filter(|l| l.starts_with("error: ")).collect();
    assert!(!errors.is_empty() && errors.iter().all(|e| e.contains("a context of 60 is available")), "{errors:?}");
    let advice = ran.err.lines().filter(|l| l.starts_with("advice: ") && l.contains("/reset"));
    assert_eq!(advice.count(), errors.len(), "{}", ran.err);
    assert_eq!(ran.out.lines().last(), one.out.lines().last());

    let ran = piped(&["-c", "20"], format!("Is {}?\n", "it ".repeat(40)));
    assert!(ran.err.contains("shorten") && !ran.err.contains("/reset"), "{}", ran.err);
}

#[test]
fn a_conversation_is_kept_in_a_file_and_goes_on() {
    let folder = TempDir::new().expect("a folder");
    let file = text(folder.path().join("my talk"));
    let whole = piped(&["-v"], "What is it?\nAnd now?\n");
    let ran = piped(&["-v"], format!("What is it?\n/save {file}\n/reset\nAnd now?\n/load '{file}'\nAnd now?\n"));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(ran.out.lines().last(), whole.out.lines().last());
    assert_eq!(read_tokens(&ran).last(), read_tokens(&whole).last(), "nothing runs again");

    let picture = picture();
    let ran = piped(&[], format!("/load {picture}\n/save {picture}\n/load nowhere\nWhat is it?\n"));
    assert_eq!((ran.code, ran.out.lines().last()), (Some(2), whole.out.lines().next()), "{}", ran.err);
    assert_eq!(ran.err.lines().filter(|line| line.starts_with("error: ")).count(), 3, "{}", ran.err);
    assert!(ran.err.contains("is no saved session"), "{}", ran.err);
}

#[test]
fn questions_and_answers_are_taken_back() {
    let plain = piped(&[], "What is it?\nAnd now?\n");
    let answers: Vec<&str> = plain.out.lines().collect();
    let ran = piped(&[], "/retry\n/undo\nWhat is it?\n/retry\nWhy?\n/undo\nAnd now?\n");
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!((lines[0], lines[1], lines.last()), (answers[0], answers[0], answers.last()), "{}", ran.out);
    assert!(ran.err.contains("no answer to take back") && ran.err.contains("no question to take back"), "{}", ran.err);
    assert!(ran.err.contains("always the same"), "{}", ran.err);
    let random = ["--temp", "5", "--seed", "3", "--top-k", "0", "--top-p", "1"];
    let ran = piped(&random, "What is it?\n/retry\n/retry\n");
    let lines: std::collections::HashSet<&str> = ran.out.lines().collect();
    assert!(lines.len() > 1, "a seed a try: {}", ran.out);
}

#[test]
fn a_question_of_several_lines_is_one() {
    let one = piped(&["-v"], "\"\"\"What is it?\nAnd now?\n/quit\"\"\"\n");
    assert_eq!((one.code, one.out.lines().count(), read_tokens(&one).len()), (Some(0), 1, 1), "{}", one.err);
    let longer = piped(&["-v"], "\"\"\"\r\nWhat is it?\r\nAnd now?\r\n/quit\n\n\n");
    assert!(read_tokens(&longer)[0] > read_tokens(&one)[0], "{}", longer.err);
}

#[test]
fn settings_change_in_a_conversation() {
    let ran = piped(
        &[],
        "/set\n/set temp 2 --top_k 7 seed 5\n/set\n/set top-k x\n/set colour red\n/set temp\n/set temp -1\n",
    );
    assert!(ran.err.contains("temp 0, top-k 50") && ran.err.contains("temp 2, top-k 7"), "{}", ran.err);
    let errors: Vec<&str> = ran.err.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!((errors.len(), ran.code), (4, Some(2)), "{}", ran.err);
    assert!(errors[0].contains("top-k") && errors[1].contains("colour") && errors[2].contains("/set temp 0.8"));
    assert!(errors[3].contains("temp"), "{}", errors[3]);
    let drawn = piped(&["--temp", "5", "--seed", "3"], "What is it?\n");
    let set = piped(&[], "/set temp 5 seed 3\nWhat is it?\n");
    assert_eq!(drawn.out, set.out);
    // This model knows no such role: the conversation begins again as it was.
    let ran = piped(&[], "/system Be kind.\nWhat is it?\n");
    assert!(ran.code == Some(2) && ran.err.contains("system"), "{}", ran.err);
    assert_eq!(ran.out, piped(&[], "What is it?\n").out);
    let ran = piped(&["--no-template"], "/system Be kind.\n");
    assert!(ran.code == Some(2) && ran.err.contains("--no-template"), "{}", ran.err);
}

#[test]
fn an_answer_that_the_context_cuts_says_so() {
    let ends = |n: &str| {
        let mut args = chat(&["-c", "60", "-v", "--logit-bias", "77=1e9"]);
        args.iter_mut().filter(|arg| *arg == "4").for_each(|arg| *arg = n.to_owned());
        let ran = fed(&args.iter().map(String::as_str).collect::<Vec<_>>(), b"What is it?\n");
        ran.err.lines().find(|line| line.starts_with("generated:")).unwrap_or(&ran.err).to_owned()
    };
    let [few, many] = ["4", "100"].map(ends);
    assert!(few.contains(" 4 tokens") && few.contains("maximum number of tokens"), "{few}");
    assert!(many.contains("the context is full"), "{many}");
}

#[test]
fn a_question_that_is_refused_is_no_part_of_the_conversation() {
    let long = format!("Is {}?\n", "it ".repeat(40));
    let plain = piped(&["-c", "60", "-v"], "What is it?\nAnd now?\n");
    let refused = piped(&["-c", "60", "-v"], format!("What is it?\n{long}And now?\n"));
    assert_eq!((plain.code, refused.code), (Some(0), Some(2)), "{}{}", plain.err, refused.err);
    assert_eq!(read_tokens(&refused), read_tokens(&plain));
    assert_eq!(refused.out, plain.out);

    // A question that leaves no room for an answer is refused as well: find the context in which it does.
    let tokens = read_tokens(&plain)[1];
    let ran = piped(&["-c", &tokens.to_string(), "-v"], "What is it?\nAnd now?\nAnd?\n");
    assert!(ran.err.contains(&format!("a context of {tokens} is available")), "{}", ran.err);
    assert_eq!(ran.err.lines().filter(|l| l.starts_with("error: ")).count(), 1, "{}", ran.err);
    assert_eq!(read_tokens(&ran).len(), 2, "{}", ran.err);
}

#[test]
fn a_conversation_goes_on_past_its_context_if_asked_to() {
    let lines = "What is it?\n".repeat(12);
    let ran = piped(&["-c", "60", "-v"], &lines);
    assert!(ran.err.contains("--context-shift"), "{}", ran.err);
    let ran = piped(&["-c", "60", "-v", "--context-shift"], &lines);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert_eq!(read_tokens(&ran).len(), 12, "{}", ran.err);
    assert!(ran.err.contains("have left"), "{}", ran.err);
    // A question that no context of this size holds is an error still.
    let ran = piped(&["-c", "60", "--context-shift"], format!("{}\nWhat is it?\n", "word ".repeat(100)));
    assert_eq!(ran.err.lines().filter(|l| l.starts_with("error: ")).count(), 1, "{}", ran.err);
    assert!(ran.err.contains("a context of 60"), "{}", ran.err);
}

#[test]
fn a_picture_that_does_not_fit_leaves_the_conversation() {
    let image = picture();
    let with = |context: &str| piped(&["-c", context, "-v"], format!("What is it?\n/image {image}\nAnd now?\n"));
    let kept = piped(&["-c", "60", "-v"], "What is it?\nAnd now?\n");
    let shown = with("60");
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    assert_ne!(read_tokens(&shown), read_tokens(&kept), "a picture begins a new conversation");

    // A picture of this model is 4 tokens, which no context holds that is smaller; a damaged one has no tokens at all.
    let dir = TempDir::new().expect("a folder");
    let broken = dir.path().join("broken.png");
    std::fs::write(&broken, "no picture").expect("written");
    let ran = piped(&["-c", "60", "-v"], format!("What is it?\n/image {}\nAnd now?\n", text(&broken)));
    assert_fails(&ran, &["chat"], &["broken.png"]);
    assert_eq!(read_tokens(&ran), read_tokens(&kept));
}

#[test]
fn lines_of_every_kind_are_read() {
    let want = piped(&[], "What is it?\nAnd now?\n").out;
    assert_eq!(piped(&[], "What is it?\r\nAnd now?").out, want);
    assert_eq!(piped(&[], "\u{feff}What is it?\nAnd now?\n").out, want, "a byte order mark is not part of a question");
    let ran = piped(&[], b"a\0b\n\n\xff\xfe\xff\nWhat is it?\n");
    assert_fails(&ran, &["chat"], &["stdin"]);
    assert_eq!(ran.out.lines().count(), 2, "{:?}", ran.out);
    // What lies behind the most that a line may hold is not taken for a question of its own.
    let endless = ["x".repeat(65 << 20).as_str(), "\n/help\n"].concat();
    let ran = piped(&[], endless);
    assert_fails(&ran, &["chat"], &["stdin"]);
    assert!(ran.err.contains("/quit"), "{}", ran.err);
}

#[test]
fn a_picture_is_named_as_terminals_name_dragged_files() {
    let dir = TempDir::new().expect("a folder");
    let file = dir.path().join("a b.png");
    std::fs::copy(picture(), &file).expect("copied");
    let path = text(&file);
    let want = piped(&["--image", &picture()], "What is it?\n").out;
    let address = format!("file://{}", path.replace(' ', "%20"));
    for written in [path.clone(), format!("'{path}'"), format!("\"{path}\""), path.replace(' ', "\\ "), address] {
        let ran = piped(&[], format!("/image {written}\nWhat is it?\n"));
        assert_eq!((ran.code, &ran.out), (Some(0), &want), "{written}: {}", ran.err);
    }
}

#[cfg(target_os = "linux")]
mod terminal {
    use std::cell::RefCell;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::{FromRawFd, OwnedFd};
    use std::os::unix::process::CommandExt;
    use std::process::{Child, ExitStatus};
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::chat;
    use super::support::cli::command;

    /// A chat on a terminal of its own.
    struct Terminal {
        child: Child,
        keys: File,
        pieces: Receiver<Vec<u8>>,
        /// What was shown and not looked at yet.
        unread: RefCell<Vec<u8>>,
    }

    impl Terminal {
        fn open(args: &[String]) -> Self {
            Self::open_with(args, &[])
        }

        /// With variables of the environment.
        fn open_with(args: &[String], variables: &[(&str, &str)]) -> Self {
            let (mut ours, mut theirs) = (0, 0);
            let (name, modes, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
            // SAFETY: both numbers are written, and nothing else is asked for.
            let opened = unsafe { libc::openpty(&mut ours, &mut theirs, name, modes, size) };
            assert_eq!(opened, 0, "no terminal");
            // SAFETY: openpty gave these files to nobody else.
            let (ours, theirs) = unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
            let mut command = command(&args.iter().map(String::as_str).collect::<Vec<_>>());
            let copy = || theirs.try_clone().expect("a copy");
            command.envs(variables.iter().copied());
            command.env("TERM", "xterm").stdin(copy()).stdout(copy()).stderr(copy());
            let own_session = || {
                // SAFETY: two system calls, of the child alone: Ctrl-C goes to who has the terminal.
                let done = unsafe { libc::setsid() >= 0 && libc::ioctl(0, libc::TIOCSCTTY, 0) == 0 };
                if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
            };
            // SAFETY: the closure allocates nothing and locks nothing.
            let child = unsafe { command.pre_exec(own_session) }.spawn().expect("the command runs");
            drop(command);
            let (send, pieces) = channel();
            let mut screen = ours.try_clone().expect("a copy");
            thread::spawn(move || {
                let mut piece = vec![0; 4096];
                // The terminal's end is an error on Linux.
                while let Ok(n @ 1..) = screen.read(&mut piece) {
                    if send.send(piece[..n].to_vec()).is_err() {
                        break;
                    }
                }
            });
            Terminal { child, keys: ours, pieces, unread: RefCell::default() }
        }

        /// Gives it another number of columns.
        fn resize(&self, columns: u16) {
            let size = libc::winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            // SAFETY: the call reads a size, of an open terminal.
            let done = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&self.keys), libc::TIOCSWINSZ, &size) };
            assert_eq!(done, 0);
        }

        fn press(&mut self, keys: &str) {
            self.keys.write_all(keys.as_bytes()).expect("keys are taken");
        }

        /// What is shown up to `text`, which comes within a minute. What comes behind it is kept.
        #[track_caller]
        fn shows(&self, text: &str) -> String {
            let (mut seen, end) = (self.unread.take(), Instant::now() + Duration::from_secs(60));
            loop {
                if let Some(at) = seen.windows(text.len()).position(|part| part == text.as_bytes()) {
                    self.unread.replace(seen.split_off(at + text.len()));
                    return String::from_utf8_lossy(&seen).into_owned();
                }
                let shown = String::from_utf8_lossy(&seen);
                assert!(Instant::now() < end, "{text:?} is not shown: {shown:?}");
                seen.extend(self.pieces.recv_timeout(Duration::from_millis(50)).unwrap_or_default());
            }
        }

        /// Presses keys that end the program.
        #[track_caller]
        fn ends_by(mut self, keys: &str) -> ExitStatus {
            self.press(keys);
            for _ in 0..3000 {
                if let Some(status) = self.child.try_wait().expect("a state") {
                    return status;
                }
                thread::sleep(Duration::from_millis(20));
            }
            panic!("it does not end");
        }
    }

    impl Drop for Terminal {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    #[test]
    fn arrow_keys_edit_the_question_and_bring_back_earlier_ones() {
        let asked = |keys: &[&str]| {
            let mut chat = Terminal::open(&chat(&["-v"]));
            let mut answers = Vec::new();
            for keys in keys {
                chat.shows("> ");
                chat.press(keys);
                let shown = chat.shows("experts:");
                let line = shown.lines().find(|l| l.starts_with("prefill:")).expect("statistics");
                answers.push(line.split_whitespace().nth(1).expect("a number").to_owned());
                chat.press("/reset\n");
                chat.shows("/reset\r\n");
            }
            chat.shows("> ");
            assert_eq!(chat.ends_by("\x04").code(), Some(0));
            answers
        };
        let plain = asked(&["What is 2 + 43?\n"]);
        let edited = asked(&["What is 2 + 3?\x1b[D\x1b[D4\x1b[C\x1b[C\n", "\x1b[A\x1b[A\n"]);
        assert_eq!(edited, [plain[0].clone(), plain[0].clone()]);
    }

    /// The tokens of the last prompt, by -v.
    fn prompt_of(shown: &str) -> String {
        let line = shown.lines().rfind(|line| line.starts_with("prefill:")).unwrap_or_else(|| panic!("{shown:?}"));
        line.split_whitespace().nth(1).expect("a number").to_owned()
    }

    #[test]
    fn a_text_is_pasted_as_one_and_tab_completes() {
        let asked = |keys: &str| {
            let mut chat = Terminal::open(&chat(&["-v"]));
            chat.shows("> ");
            chat.press(keys);
            prompt_of(&chat.shows("experts:"))
        };
        let pasted = asked("\x1b[200~What is it?\rAnd\tnow?\r/quit\r\x1b[201~\r");
        let mut chat = Terminal::open(&chat(&["-v"]));
        chat.shows("> ");
        chat.press("\"\"\"What is it?\r");
        chat.shows("… ");
        chat.press("And now?\r");
        chat.shows("… ");
        chat.press("/quit\"\"\"\r");
        let block = prompt_of(&chat.shows("experts:"));
        assert!(
            pasted.parse::<usize>().expect("a number").abs_diff(block.parse().expect("a number")) < 3,
            "{pasted} {block}"
        );
        chat.shows("> ");
        // Both that begin so are listed, and the one that is left is taken.
        chat.press("/re\t");
        chat.shows("/reset  /retry");
        chat.press("s\t\r");
        chat.shows("/reset\r\n");
        chat.shows("> ");
        chat.press("/sy\tBe kind.\r");
        chat.shows("error: ");
        chat.shows("> ");
        assert_eq!(chat.ends_by("\x04").code(), Some(0));
    }

    #[test]
    fn earlier_conversations_are_recalled() {
        let folder = super::TempDir::new().expect("a folder");
        for first in [true, false] {
            let mut chat =
                Terminal::open_with(&chat(&["-v"]), &[("TERNION_CACHE", folder.path().to_str().expect("UTF-8"))]);
            chat.shows("> ");
            chat.press(if first { "What is 2 + 43?\r" } else { "\x1b[A\r" });
            let shown = chat.shows("experts:");
            assert!(first || shown.contains("What is 2 + 43?"), "{shown:?}");
            chat.shows("> ");
            assert_eq!(chat.ends_by("\x04").code(), Some(0));
        }
    }

    #[test]
    fn a_terminal_of_another_size_shows_the_line_again() {
        let mut chat = Terminal::open(&chat(&["-v"]));
        chat.shows("> ");
        chat.resize(20);
        chat.press("0123456789012345678901234567890");
        chat.shows("> ");
        let last = |shown: String| shown.rsplit("> ").next().unwrap_or_default().to_owned();
        chat.press("X");
        let narrow = chat.shows("X");
        assert!(last(narrow.clone()).len() < 20, "{narrow:?}");
        chat.resize(80);
        chat.press("Y");
        assert!(chat.shows("Y").contains("0123456789012345678901234567890X"));
        chat.press("\r");
        chat.shows("experts:");
    }

    #[test]
    fn a_terminal_is_told_the_model_and_the_device_in_a_line() {
        let chat = Terminal::open(&chat(&[]));
        let shown = chat.shows("> ");
        let line = shown.lines().find(|line| line.contains(" · CPU, ")).unwrap_or_else(|| panic!("{shown:?}"));
        assert!(
            line.contains("embernet/tiny") && !shown.contains("device:") && !shown.contains("as asked"),
            "{shown:?}"
        );
        assert_eq!(chat.ends_by("\x04").code(), Some(0));
    }

    #[test]
    fn ctrl_c_ends_an_answer_and_at_the_prompt_the_program() {
        let model = super::text(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shapes/model"));
        let args = ["chat", "-m", &model, "--device", "cpu", "--threads", "1", "-n", "1500", "-v"];
        // Random text ends by itself after some hundred tokens, which are hundredths of a second: some seed outlasts a key.
        let stopped = (1..60).find_map(|seed: u32| {
            let seed = seed.to_string();
            let random = ["--temp", "100", "--top-k", "0", "--top-p", "1", "--seed", &seed];
            let mut chat = Terminal::open(&args.iter().chain(&random).map(|&arg| arg.to_owned()).collect::<Vec<_>>());
            chat.shows("> ");
            chat.press("Tell me all\n");
            chat.shows("all\r\n");
            thread::sleep(Duration::from_millis(10));
            chat.press("\x03");
            chat.shows("experts:").contains("it was stopped").then_some(chat)
        });
        let mut chat = stopped.expect("an answer is stopped");
        chat.shows("> ");
        chat.press("/reset\n");
        chat.shows("/reset\r\n");
        chat.shows("> ");
        assert_eq!(chat.ends_by("\x03\x03").code(), Some(130));
    }

    #[test]
    fn no_key_is_lost_between_others() {
        let mut chat = Terminal::open(&chat(&[]));
        chat.shows("> ");
        for i in 0..60 {
            // The second key comes while the first is looked at, now here and now there.
            chat.press("a");
            thread::sleep(Duration::from_micros(i * 10));
            chat.press("\x03");
            chat.shows("Ctrl-C again ends");
            chat.shows("> ");
            chat.press("/help\n");
            chat.shows("show this");
            chat.shows("> ");
        }
        assert_eq!(chat.ends_by("\x04").code(), Some(0));
    }
}
