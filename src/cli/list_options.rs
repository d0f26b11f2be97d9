//! Options that take several values, before the arguments are parsed.

use std::ffi::OsString;

/// The arguments of the program with each value of a command's lists behind an option of its own: `--text a b` as `--text a
/// --text b`. What follows the option is its value, whatever it begins with; further values end with the
/// first that begins with a dash and is not a dash alone.
///
/// Clap has lists whose values may begin with a dash, but they take all that follows, other options too.
pub fn separate_values(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args = args.into_iter().peekable();
    let mut separate: Vec<OsString> = args.next().into_iter().collect();
    // Options of the program itself stand before the command and have no values.
    while let Some(option) = args.next_if(begins_with_dash) {
        separate.push(option);
    }
    let lists: &[&str] = match args.peek().and_then(|command| command.to_str()) {
        Some("similarity") => &["-i", "--image", "-t", "--text"],
        Some("run" | "chat") => &["--image"],
        _ => &[],
    };
    while let Some(option) = args.next() {
        let is_list = lists.iter().any(|list| option == *list);
        separate.push(option.clone());
        if is_list {
            separate.extend(args.next());
            while let Some(value) = args.next_if(|value| !begins_with_dash(value) || value == "-") {
                separate.extend([option.clone(), value]);
            }
        }
    }
    separate
}

fn begins_with_dash(arg: &OsString) -> bool {
    arg.as_encoded_bytes().starts_with(b"-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_of_a_list_get_an_option_each() {
        let separated = |line: &str| {
            let words = separate_values(line.split(' ').map(OsString::from));
            words.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            separated("ternion -v similarity --text -5 b - --image a.png b.png --json -t c"),
            "ternion -v similarity --text -5 --text b --text - --image a.png --image b.png --json -t c"
        );
        assert_eq!(separated("ternion similarity -i --text"), "ternion similarity -i --text");
        assert_eq!(separated("ternion similarity --text=-5 -i"), "ternion similarity --text=-5 -i");
        assert_eq!(separated("ternion run --image a b -p - -t c d"), "ternion run --image a --image b -p - -t c d");
        for other in ["ternion search similarity --image a b", "ternion"] {
            assert_eq!(separated(other), other);
        }
    }
}
