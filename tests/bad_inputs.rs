//! What each kind of bad input gets: a typed error that names it, in no more memory than the file has and 64 MiB. A row for each
//! kind; `cargo test --release --test bad_inputs -- --nocapture` prints them with their messages. What takes a device or more
//! than one step to bring about is tested elsewhere: [`ELSEWHERE`].

mod support {
    #[cfg(feature = "cli")]
    pub mod cli;
    pub mod gguf_files;
    pub mod peak;
    pub mod torch_files;
}

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::gguf_files::{GgufFile, value};
use support::peak::{Counting, alone, peak};
use support::torch_files::pickled::*;
use support::torch_files::{six, six_floats, stored, torch_file, zip_of};
use ternion::engine::{Precision, Progress};
use ternion::files::chat_template::{ChatTemplate, Message, TemplateOptions};
use ternion::files::{Checkpoint, GgufMetadata, Image, ModelFiles, Tokenizer};
use ternion::tools::inspect::inspect;
use ternion::{Engine, Options, Result};
use zip::CompressionMethod::Deflated;

#[global_allocator]
static COUNTING: Counting = Counting;

/// What a refused file may take besides its own size.
const SLACK: usize = 64 << 20;

/// What a rendering of a template may take instead of a file's size: 128 MiB of texts, of which the last grows by doubling.
const MADE: usize = 192 << 20;

/// Kinds of bad input with a test of their own, by their numbers in the list of kinds that all of these are from.
const ELSEWHERE: [(u32, &str, &str); 19] = [
    (6, "tensors of another number format", "bad_files.rs, gguf_files.rs"),
    (7, "rows of packed codes that do not end with a word", "widths.rs, block_formats.rs"),
    (9, "scales that are 0 or not finite", "gguf_files.rs, block_formats.rs, files::weights"),
    (10, "weights and logits that are not finite", "bad_values.rs, engine.rs"),
    (11, "ternary codes of 3", "bad_values.rs, files::weights"),
    (12, "families that nobody knows", "bad_values.rs, models.rs"),
    (18, "prompts that are not UTF-8", "cli.rs, files::text"),
    (17, "prompts beyond the context", "context.rs, chat.rs"),
    (19, "tokens that end within a character", "files::tokenizer"),
    (24, "no adapter, or one below the limits", "devices.rs"),
    (25, "no memory on the device", "limits.rs, devices.rs"),
    (26, "a device that is lost", "devices.rs"),
    (27, "steps that would run too long", "engine.rs"),
    (28, "subgroups of any size, no f16, no timestamps", "op_parity.rs"),
    (29, "cancelling and dropping at any time", "streams.rs, engine.rs"),
    (30, "sampling values out of range", "sample.rs"),
    (31, "requests to a server", "there is none"),
    (32, "disks that are full, writers at the same time", "outputs.rs, files::atomic"),
    (33, "files that change while they are open", "Checkpoint says it"),
];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn read(name: &str) -> Vec<u8> {
    fs::read(golden(name)).expect("a golden file")
}

/// What reading an input says, which must not go well.
fn refused<T>(row: u32, what: &str, size: usize, run: impl FnOnce() -> Result<T>) -> String {
    let (said, peak) = peak(|| run().map(|_| ()).err().map(|error| error.to_string()));
    let said = said.unwrap_or_else(|| panic!("{row}, {what}: it is accepted"));
    assert!(peak <= size + SLACK, "{row}, {what}: {peak} bytes for a file of {size}: {said}");
    let shown: String = said.chars().take(160).collect();
    println!("| {row} | {what} | {shown} |");
    said
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    parts.iter().for_each(|part| assert!(text.contains(part), "{part:?} is not in: {text}"));
}

/// A checkpoint in memory.
fn model(row: u32, what: &str, bytes: &[u8], parts: &[&str]) {
    let files = ModelFiles::from_bytes("m", [(ModelFiles::CHECKPOINT, bytes)]);
    says(&refused(row, what, bytes.len(), || Checkpoint::open(&files)), parts);
}

/// The small EmberNet with another `config.json`.
fn config(row: u32, what: &str, text: &[u8], parts: &[&str]) {
    let (size, weights) = (text.len(), read("embernet/oddgrid/model.safetensors"));
    let files = ModelFiles::from_bytes("m", [(ModelFiles::CHECKPOINT, &weights[..]), ("config.json", text)]);
    says(&refused(row, what, size + weights.len(), || inspect(&files, Precision::F16, Progress::ignore)), parts);
}

fn tokenizer(row: u32, what: &str, text: &[u8], parts: &[&str]) {
    let copy = text.to_vec();
    let said = refused(row, what, text.len(), || Tokenizer::from_bytes("tokenizer.json", copy));
    says(&said, &[&["tokenizer.json"], parts].concat());
}

/// A safetensors file with this header, as JSON, and so many bytes.
fn safetensors(header: &str, bytes: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; bytes]].concat()
}

fn tensor(dtype: &str, shape: &str, from: u64, to: u64) -> String {
    format!("{{\"w\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}}}")
}

const LFS: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
const PAGE: &[u8] = b"<!DOCTYPE html><html>404</html>";

#[test]
fn files_that_are_something_else() {
    let _alone = alone();
    model(1, "an empty file", b"", &["0 bytes"]);
    model(1, "7 bytes", b"abcdefg", &["7 bytes"]);
    model(1, "an unknown beginning", &[b'x'; 100], &["not a model file"]);
    model(1, "a Git LFS pointer", LFS, &["git lfs pull"]);
    model(1, "a page of HTML", PAGE, &["HTML"]);
    for (what, text, part) in [("a Git LFS pointer", LFS, "git lfs pull"), ("a page of HTML", PAGE, "HTML")] {
        config(1, &format!("{what} as config.json"), text, &["m/config.json", part]);
        tokenizer(1, &format!("{what} as tokenizer.json"), text, &[part]);
        let dir = tempfile::tempdir().expect("a folder");
        let index = dir.path().join("model.safetensors.index.json");
        fs::write(&index, text).expect("written");
        says(&refused(1, &format!("{what} as an index"), text.len(), || Checkpoint::open(&index)), &[part]);
    }
}

/// Cut at each byte of what comes first, and at 200 places behind it.
#[test]
fn files_cut_anywhere() {
    let _alone = alone();
    let gguf = read("gguf/tiny/qwen3_q1_0.gguf");
    let data = gguf.len() - 4096;
    let forms = [
        ("safetensors", read("embernet/oddgrid/model.safetensors"), 4000),
        ("torch", read("embernet/oddgrid/pytorch_model.bin"), 4000),
        ("GGUF", gguf, data.min(12_000)),
    ];
    for (form, bytes, header) in &forms {
        let behind = (0..200).map(|i| header + i * (bytes.len() - header) / 200);
        let (mut worst, mut said) = (0, String::new());
        for cut in (0..*header).chain(behind) {
            let files = ModelFiles::from_bytes("m", [(ModelFiles::CHECKPOINT, &bytes[..cut])]);
            let (opened, peak) = peak(|| Checkpoint::open(&files).map(|_| ()));
            said = opened.expect_err(&format!("{form} cut to {cut} bytes")).to_string();
            worst = worst.max(peak);
        }
        assert!(worst <= bytes.len() + SLACK, "{form}: {worst} bytes");
        println!("| 2 | {form} cut at {} places | {said} |", header + 200);
    }
}

#[test]
fn headers_that_lie() {
    let _alone = alone();
    let good = read("embernet/oddgrid/model.safetensors");
    for length in [0, 1, good.len() as u64, 100_000_001, u64::MAX - 1, u64::MAX] {
        let bytes = [&length.to_le_bytes()[..], &good[8..]].concat();
        model(3, &format!("a header of {length} bytes"), &bytes, &["m/model.safetensors"]);
    }
    let two = |a: &str, b: &str| {
        let of =
            |name: &str, at: &str| format!("\"{name}\":{{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[{at}]}}");
        safetensors(&format!("{{{},{}}}", of("a", a), of("b", b)), 8)
    };
    model(4, "tensors that overlap", &two("0,4", "2,6"), &["\"b\"", "overlap"]);
    model(4, "a gap between tensors", &two("0,3", "4,8"), &["\"a\"", "needs 4 bytes"]);
    model(4, "a gap behind the tensors", &two("0,4", "0,4"), &["overlap"]);
    model(4, "offsets that descend", &two("0,4", "8,4"), &["\"b\"", "descend"]);
    model(4, "a tensor beyond the file", &two("0,4", "5,9"), &["\"b\"", "cut short"]);
    let one = |dtype: &str, shape: &str, to: u64| safetensors(&tensor(dtype, shape, 0, to), to.min(64) as usize);
    model(5, "a shape that overflows", &one("F32", "[4294967296,4294967296]", 8), &["\"w\"", "overflows"]);
    model(5, "a negative dimension", &one("F32", "[-1]", 8), &["header at byte"]);
    model(5, "9 dimensions", &one("F32", "[1,1,1,1,1,1,1,1,1]", 4), &["9 dimensions"]);
    let many = format!("[{}1]", "1,".repeat(4 << 20));
    model(5, "4 million dimensions", &one("F32", &many, 4), &["4194305 dimensions"]);
    let entry = "{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}";
    let names: Vec<String> = (0..300_000).map(|i| format!("\"{i}\":{entry}")).collect();
    let names = format!("{{{}}}", names.join(","));
    model(5, "300,000 tensors", &safetensors(&names, 0), &["more than 100000 tensors"]);
    let texts: Vec<String> = (0..400_000).map(|i| format!("\"{i}\":\"\"")).collect();
    let texts = format!("{{\"__metadata__\":{{{}}}}}", texts.join(","));
    model(5, "400,000 texts in a header", &safetensors(&texts, 0), &["more than 10000 texts"]);
    model(8, "a tensor twice", &safetensors(&format!("{{\"w\":{entry},\"w\":{entry}}}"), 0), &["\"w\"", "twice"]);
}

#[test]
fn archives_that_are_damaged() {
    let _alone = alone();
    let value = dict(&[("w", tensor_of_six())]);
    let good = torch_file(value.clone());
    let at = |part: &[u8], from: usize| from + good[from..].windows(part.len()).position(|w| w == part).expect("there");
    let six = at(&1f32.to_le_bytes(), 0);
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    let open = |bytes: &[u8]| {
        let files = ModelFiles::from_bytes("m", [(ModelFiles::CHECKPOINT, bytes)]);
        Checkpoint::open(&files).and_then(|checkpoint| checkpoint.bytes("w").map(|_| ()))
    };
    assert!(open(&good).is_ok());
    let row = |what: &str, bytes: &[u8], parts: &[&str]| says(&refused(22, what, bytes.len(), || open(bytes)), parts);
    row("a flipped bit of a storage", &changed(six, good[six] ^ 1), &["\"w\"", "CRC-32"]);
    let pickle = at(b"storage", 0);
    row("a flipped bit of a pickle", &changed(pickle, b'S'), &["data.pkl", "CRC-32"]);
    // The name in front of the first entry's bytes, and the length of what follows it.
    row("another name in front of an entry", &changed(30, b'x'), &["another name"]);
    row("a flipped bit in front of an entry", &changed(28, 4), &["m/data.pkl"]);
    let first = at(b"PK\x01\x02", 0);
    let second = at(b"PK\x01\x02", first + 4);
    let mut both = good.clone();
    both.copy_within(first + 42..first + 46, second + 42);
    row("two entries over the same bytes", &both, &["m/byteorder"]);
    let zeros = vec![0; 100 << 20];
    let bomb = zip_of(stored().compression_method(Deflated), &[("m/data.pkl", &zeros)]);
    row("a zip of 100 MB that inflates to 100 MB of zeros", &bomb, &["when inflated"]);
    let lead_out = zip_of(stored(), &[("../data.pkl", b"}."), ("../data/0", b"x")]);
    row("names that lead out of the archive", &lead_out, &["no tensors"]);
}

fn tensor_of_six() -> Vec<u8> {
    support::torch_files::pickled::tensor(six_floats(), 0, &[6], &[1])
}

#[test]
fn pickles_that_are_traps() {
    let _alone = alone();
    let pickle_of = |value: &[u8]| zip_of(stored().compression_method(Deflated), &[("m/data.pkl", value)]);
    let system = call("os", "system", &[text("true")]);
    model(21, "a call of os.system", &torch_file(dict(&[("w", system)])), &["os.system"]);
    let name = "n".repeat(1 << 20);
    let named = [b"\x80\x02}", &text(&name)[..], b"q\x01", &tensor_of_six(), b"q\x0200("].concat();
    let named = [named, b"h\x01h\x02".repeat(8000), b"u.".to_vec()].concat();
    let archive = [("m/data.pkl", &named[..]), ("m/data/0", &six())];
    let archive = zip_of(stored().compression_method(Deflated), &archive);
    model(21, "one long name for 8,000 tensors", &archive, &["is there twice"]);
    let values = [&b"\x80\x02("[..], &b"]".repeat(4 << 20), b"t."].concat();
    model(21, "4 million values in 4 kB", &pickle_of(&values), &["no file of this size needs"]);
    model(21, "a text of 2^63 bytes", &pickle_of(b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fa."), &["cut short"]);
    model(21, "an opcode that torch does not write", &pickle_of(b"\x80\x02i"), &["opcode 0x69"]);
    model(21, "a pickle without an archive", b"\x80\x02}q\0.", &["old torch format"]);
}

#[test]
fn keys_of_gguf_files_that_lie() {
    let _alone = alone();
    let file = |pairs: &[(&str, Vec<u8>)]| GgufFile::new(pairs).bytes();
    let keys = |row: u32, what: &str, bytes: &[u8], parts: &[&str]| {
        let files = ModelFiles::from_bytes("m", [(ModelFiles::CHECKPOINT, bytes)]);
        says(&refused(row, what, bytes.len(), || GgufMetadata::of(&files)), parts);
    };
    for alignment in [0, 3, 1 << 31] {
        let bytes = file(&[("general.alignment", value::u32(alignment))]);
        keys(14, &format!("an alignment of {alignment}"), &bytes, &["general.alignment"]);
    }
    keys(14, "a key twice", &file(&[("a", value::u8(1)), ("a", value::u8(2))]), &["\"a\"", "twice"]);
    let lying = [&8u32.to_le_bytes()[..], &(1u64 << 63).to_le_bytes()].concat();
    keys(14, "a text of 2^63 bytes", &file(&[("a", lying)]), &["\"a\"", "at most"]);
    let deep =
        [&9u32.to_le_bytes()[..], &[&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat().repeat(10_000)].concat();
    keys(14, "arrays nested 10,000 deep", &file(&[("a", deep)]), &["\"a\""]);
}

#[test]
fn configurations_that_ask_too_much() {
    let _alone = alone();
    let good: Value = serde_json::from_slice(&read("embernet/oddgrid/config.json")).expect("JSON");
    let with = |key: &str, value: Value| {
        let mut changed = good.clone();
        match changed.pointer_mut(key) {
            Some(place) => *place = value,
            None => panic!("the golden configuration has no {key}"),
        }
        changed.to_string().into_bytes()
    };
    config(13, "a list", b"[1]", &["m/config.json"]);
    config(13, "text that ends early", b"{\"a\": ", &["m/config.json", "line 1"]);
    for name in ["hidden_size", "num_layers", "num_attention_heads", "vocab_size"] {
        for value in [json!(0), json!(1u64 << 31), json!(-1), json!("x"), json!(null), json!(1e300)] {
            config(13, &format!("{name} {value}"), &with(&format!("/language_decoder/{name}"), value), &[name]);
        }
    }
}

#[test]
fn tokenizers_that_are_traps() {
    let _alone = alone();
    let base = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}});
    let with = |part: &str, value: Value| {
        let mut changed = base.clone();
        changed[part] = value;
        changed.to_string().into_bytes()
    };
    let growing = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(1000)});
    tokenizer(
        15,
        "a text that grows 1000⁴ times",
        &with("normalizer", json!({"type": "Sequence", "normalizers": [growing, growing, growing, growing]})),
        &["4096 times"],
    );
    tokenizer(15, "a token that grows 1000 times", &with("decoder", growing.clone()), &["64 times"]);
    tokenizer(
        15,
        "a table with a length that is not there",
        &with("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="})),
        &["shorter than it says"],
    );
    tokenizer(
        15,
        "a search for an empty text",
        &with("normalizer", json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"})),
        &["empty text"],
    );
    let good = base.to_string();
    tokenizer(15, "a file that ends early", &good.as_bytes()[..good.len() - 20], &["column"]);
    tokenizer(15, "an unknown kind", &with("model", json!({"type": "?"})), &["is not a tokenizer"]);
    let dropping = with("normalizer", json!({"type": "Replace", "pattern": {"Regex": "[^ ]"}, "content": ""}));
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("tokenizer.json");
    fs::write(&path, dropping).expect("written");
    let options = Options { tokenizer: Some(path), device: ternion::engine::DeviceChoice::Cpu, ..Options::default() };
    let mut session = Engine::open(golden("embernet/oddgrid"), options).expect("a model").session().expect("a session");
    says(
        &refused(15, "a tokenizer that drops the text", 0, || session.push_text("what")),
        &["no tokens of its 4 bytes"],
    );
}

#[test]
fn templates_that_are_traps() {
    let _alone = alone();
    let render = |source: &str| {
        let template = ChatTemplate::new("template", source, ["", ""])?;
        let now = std::time::SystemTime::UNIX_EPOCH;
        template.render(
            &[Message::new("user", "hi")],
            &TemplateOptions { add_generation_prompt: true, enable_thinking: None, now },
        )
    };
    let row = |what: &str, source: &str, parts: &[&str]| says(&refused(16, what, MADE, || render(source)), parts);
    row("a template that is not Jinja", "{% for %}", &["template"]);
    row("a bracket that closes nothing", "{% if a) %}{% endif %}", &["template"]);
    row(
        "a loop of 10⁹ steps",
        "{% for a in range(1000) %}{% for b in range(1000) %}{% for c in range(1000) %}{% endfor %}{% endfor %}{% endfor %}",
        &["template"],
    );
    row(
        "a text that doubles 40 times",
        &format!("{{% set ns = namespace(t='xx') %}}{}", "{% set ns.t = ns.t ~ ns.t %}".repeat(40)),
        &["bytes"],
    );
    row("an error that it raises itself", "{{ raise_exception('roles must alternate') }}", &["roles must alternate"]);
}

#[test]
fn pictures_that_are_traps() {
    let _alone = alone();
    let picture = |what: &str, bytes: &[u8], parts: &[&str]| {
        says(&refused(20, what, bytes.len(), || Image::decode("picture", bytes)), parts)
    };
    let png = |width: u32, height: u32| {
        let chunk = |kind: &[u8], data: &[u8]| {
            let crc = crc(&[kind, data].concat());
            [&(data.len() as u32).to_be_bytes()[..], kind, data, &crc.to_be_bytes()].concat()
        };
        let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
        [
            b"\x89PNG\r\n\x1a\n",
            &chunk(b"IHDR", &header)[..],
            &chunk(b"IDAT", b"x\x9c\x03\0\0\0\0\x01"),
            &chunk(b"IEND", b""),
        ]
        .concat()
    };
    picture("an empty file", b"", &["empty"]);
    picture("0 × 0 pixels", &png(0, 0), &["picture"]);
    picture("20000 × 1 pixels", &png(20_000, 1), &["20000 x 1"]);
    picture("50000 × 50000 pixels", &png(50_000, 50_000), &["50000 x 50000"]);
    picture("16384 × 16384 pixels in three colours", &png(16_384, 16_384), &["16384 x 16384"]);
    picture("an SVG", b"<svg xmlns='http://www.w3.org/2000/svg'/>", &["SVG"]);
    picture("a page of HTML", PAGE, &["HTML"]);
    picture("a HEIC", b"\0\0\0\x18ftypheic\0\0\0\0", &["HEIC"]);
    let mut small = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(8, 8).write_to(&mut small, image::ImageFormat::Jpeg).expect("encoded");
    let mut jpeg = small.into_inner();
    let frame = jpeg.windows(2).position(|w| w == b"\xff\xc0").expect("a frame");
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x40, 0, 0x40, 0]);
    picture("a JPEG of 16384 × 16384 pixels in 600 bytes", &jpeg, &["too few for 16384 x 16384"]);
}

/// The CRC-32 of PNG.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[test]
fn indices_that_lead_elsewhere() {
    let _alone = alone();
    let index = |what: &str, map: &str, parts: &[&str]| {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("model.safetensors.index.json");
        fs::write(&path, format!("{{\"weight_map\": {map}}}")).expect("written");
        says(&refused(23, what, map.len(), || Checkpoint::open(&path)), parts);
    };
    index("a shard that is not there", "{\"w\": \"one.safetensors\"}", &["one.safetensors", "missing"]);
    index("a shard outside of the folder", "{\"w\": \"../one.safetensors\"}", &["plain file name"]);
    index("a shard by a whole path", "{\"w\": \"/etc/passwd\"}", &["plain file name"]);
    let many: Vec<String> = (0..400_000).map(|i| format!("\"{i}\": \"a\"")).collect();
    index("400,000 tensors", &format!("{{{}}}", many.join(",")), &["more than 250000 tensors"]);
}

/// Where people meet them: one message, and the exit code of an error.
#[cfg(feature = "cli")]
#[test]
fn the_command_says_so_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let put = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).expect("written");
        path.to_str().expect("a UTF-8 path").to_owned()
    };
    let [empty, page] = [put("empty.safetensors", b""), put("page.gguf", PAGE)];
    let cut = put("cut.safetensors", &read("embernet/oddgrid/model.safetensors")[..3000]);
    let [json, svg] = [put("tokenizer.json", b"{"), put("picture.png", b"<svg/>")];
    let good = golden("embernet/oddgrid").to_str().expect("a UTF-8 path").to_owned();
    let cases: [(&[&str], &str); 6] = [
        (&["inspect", &empty], "empty"),
        (&["inspect", &page], "HTML"),
        (&["check", "-m", &cut], "cut short"),
        (&["convert", &cut, "packed"], "cut short"),
        (&["run", "-m", &good, "--tokenizer", &json, "--device", "cpu", "-p", "x"], "tokenizer.json"),
        (&["run", "-m", &good, "--image", &svg, "--device", "cpu", "-p", "x"], "SVG"),
    ];
    for (args, part) in cases {
        let ran = support::cli::ternion(args);
        let errors = ran.err.lines().filter(|line| line.starts_with("error")).count();
        assert_eq!((ran.code, errors), (Some(2), 1), "{args:?}: {}", ran.err);
        assert!(ran.err.contains(part) && !ran.err.contains("panicked"), "{args:?}: {}", ran.err);
    }
}

#[cfg(unix)]
#[test]
fn pipes_in_the_place_of_files() {
    let _alone = alone();
    let dir = tempfile::tempdir().expect("a folder");
    for name in ["model.safetensors", "config.json", "tokenizer.json"] {
        let path = dir.path().join(name);
        let made = std::process::Command::new("mkfifo").arg(&path).status().expect("mkfifo runs");
        assert!(made.success());
        let said = match name {
            "tokenizer.json" => refused(33, name, 0, || Tokenizer::open(&path)),
            "config.json" => refused(33, name, 0, || ModelFiles::from(dir.path()).read(name, 100)),
            _ => refused(33, name, 0, || Checkpoint::open(&path)),
        };
        says(&said, &[name, "not a regular file"]);
    }
}

#[test]
fn what_is_tested_elsewhere_is_there() {
    for (row, what, files) in ELSEWHERE {
        println!("| {row} | {what} | {files} |");
        for file in files.split(", ").filter(|file| file.ends_with(".rs")) {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(file);
            assert!(path.exists(), "{row}: {} is not there", path.display());
        }
    }
}
