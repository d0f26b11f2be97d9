//! Bytes that pretend to be a file of some form, handed to whatever reads that form: nothing may panic, whatever they are. The
//! fuzzers (`fuzz/`) and a test with fixed seeds (`tests/hostile.rs`) run the same functions.

use std::io::Cursor;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use tempfile::TempDir;
use ternion::apps::bitgen::EpisodicMemory;
use ternion::engine::{DeviceChoice, Options, Precision, Progress};
use ternion::files::chat_template::{ChatTemplate, Message, TemplateOptions};
use ternion::files::{Checkpoint, Image, ModelFiles, SpecialTokens, Tokenizer, Weights};
use ternion::tools::inspect::inspect;
use ternion::unstable::quant::{Packed, Stack, stack};
use ternion::{Engine, Session};

#[path = "torch_files.rs"]
mod torch_files;
use torch_files::pickled;

/// Bytes of a tensor that is read whole.
const MAX_READ: usize = 1 << 20;

/// A form of file.
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Reads bytes as if they were one.
    pub read: fn(&[u8]),
    /// Files that are as they should be.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All forms.
pub const TARGETS: [Target; 13] = [
    Target { name: "safetensors", read: checkpoint, seeds: || vec![EMBER.into(), packed_of(8), packed_of(40)] },
    Target {
        name: "torch",
        read: checkpoint,
        seeds: || vec![torch_files::without_sums(TORCH.into()), zip_of(&pickle())],
    },
    Target { name: "pickle", read: |bytes| checkpoint(&zip_of(bytes)), seeds: || vec![pickle()] },
    Target { name: "gguf", read: gguf, seeds: || GGUFS.map(Vec::from).to_vec() },
    Target { name: "index", read: index, seeds: || vec![index_of(&["a.weight", "b.weight"])] },
    Target { name: "config", read: config, seeds: || vec![CONFIG.into()] },
    Target { name: "tokenizer", read: tokenizer, seeds: || vec![WORDS.into(), PIECES.into()] },
    Target { name: "vocabulary", read: vocabulary, seeds: || vec![VOCABULARY.into()] },
    Target { name: "template", read: template, seeds: || TEMPLATES.map(Vec::from).to_vec() },
    Target { name: "picture", read: picture, seeds: pictures },
    Target { name: "memory", read: memory, seeds: || vec![kept_memory()] },
    Target { name: "session", read: session, seeds: || vec![kept_session()] },
    Target { name: "packing", read: packing, seeds: || vec![vec![3, 5, 1, 2, 0, 1, 1, 2], vec![200; 300]] },
];

const EMBER: &[u8] = include_bytes!("../golden/embernet/oddgrid/model.safetensors");
const CONFIG: &[u8] = include_bytes!("../golden/embernet/oddgrid/config.json");
const TORCH: &[u8] = include_bytes!("../golden/embernet/oddgrid/pytorch_model.bin");
const GGUFS: [&[u8]; 3] = [
    include_bytes!("../golden/gguf/tiny/qwen3_q1_0.gguf"),
    include_bytes!("../golden/gguf/tiny/llama_q2_0_linear_rope.gguf"),
    include_bytes!("../golden/gguf/tiny/bitnet_b158_i2s_relu2.gguf"),
];
const TEMPLATES: [&[u8]; 3] = [
    include_bytes!("../golden/gguf/chat/Qwen-Qwen3-0.6B.jinja"),
    include_bytes!("../golden/gguf/chat/Qwen3.5-4B.jinja"),
    b"{% for m in messages %}{{ bos_token }}{{ m['role'] | upper }}: {{ m.content.split('</think>')[-1] }}\n{% endfor %}",
];
const WORDS: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{"id":4,"content":"</s>",
"single_word":false,"lstrip":false,"rstrip":true,"normalized":false,"special":true}],"normalizer":{"type":"Sequence",
"normalizers":[{"type":"NFKC"},{"type":"Lowercase"}]},"pre_tokenizer":{"type":"WhitespaceSplit"},"post_processor":null,
"decoder":{"type":"WordPiece","prefix":"t","cleanup":true},"model":{"type":"WordLevel","vocab":{"t0":0,"t1":1,"t2":2,"what":3},
"unk_token":"t0"}}"#;
const PIECES: &str = r#"{"version":"1.0","added_tokens":[],"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend",
"prepend":"_"},{"type":"Replace","pattern":{"String":" "},"content":"_"}]},"pre_tokenizer":{"type":"Split","pattern":{"Regex":
"\\s+|\\d"},"behavior":"Isolated","invert":false},"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":
{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}}],"special_tokens":
{"<s>":{"id":"<s>","ids":[1],"tokens":["<s>"]}}},"decoder":{"type":"Sequence","decoders":[{"type":"ByteFallback"},
{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},"model":{"type":"BPE","byte_fallback":true,"unk_token":
"<unk>","vocab":{"<unk>":0,"<s>":1,"_":2,"a":3,"h":4,"ha":5,"<0x41>":6},"merges":["h a"]}}"#;
/// GPT-2's two files, with a zero between them.
const VOCABULARY: &str = "{\"h\": 0, \"e\": 1, \"he\": 2, \"\u{120}\": 3, \"<|endoftext|>\": 4}\0#version: 0.2\nh e\n";

fn open(bytes: &[u8]) -> ternion::Result<Checkpoint> {
    Checkpoint::open(ModelFiles::from_bytes("m", [(ModelFiles::CHECKPOINT, bytes)]))
}

/// A checkpoint in one file, and what is read of it.
fn checkpoint(bytes: &[u8]) {
    if let Ok(checkpoint) = open(bytes) {
        read_tensors(&checkpoint);
        let _ = (checkpoint.metadata().len(), checkpoint.unreadable().len());
    }
    let _ = Weights::open(ModelFiles::from_bytes("m", [(ModelFiles::CHECKPOINT, bytes)]));
}

fn read_tensors(checkpoint: &Checkpoint) {
    for tensor in checkpoint.tensors().filter(|tensor| tensor.bytes() <= MAX_READ && tensor.elements() <= MAX_READ) {
        let _ = checkpoint.bytes(&tensor.name);
        let _ = checkpoint.read_f32(&tensor.name, 0..tensor.elements());
        let _ = checkpoint.read_words(&tensor.name);
    }
}

fn gguf(bytes: &[u8]) {
    let files = ModelFiles::from_bytes("m", [(ModelFiles::CHECKPOINT, bytes)]);
    if let Ok(checkpoint) = Checkpoint::open(&files) {
        read_tensors(&checkpoint);
    }
    if let Ok(Some(tokenizer)) = Tokenizer::beside(&files) {
        try_tokenizer(&tokenizer);
        let _ = SpecialTokens::of(&files, &tokenizer);
    }
    let _ = inspect(&files, Precision::F16, Progress::ignore);
}

/// The index of a folder with two shards.
fn index(bytes: &[u8]) {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("one.safetensors"), packed_of(8)).expect("written");
        std::fs::write(folder.path().join("two.bin"), zip_of(&pickle())).expect("written");
        folder
    });
    let path = folder.path().join("model.safetensors.index.json");
    // A new file each time: the old one may be mapped.
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, bytes).expect("written");
    if let Ok(checkpoint) = Checkpoint::open(&path) {
        read_tensors(&checkpoint);
    }
}

fn config(bytes: &[u8]) {
    let files = [(ModelFiles::CHECKPOINT, EMBER), ("config.json", bytes)];
    let _ = inspect(ModelFiles::from_bytes("m", files), Precision::F16, Progress::ignore);
}

fn tokenizer(bytes: &[u8]) {
    if let Ok(tokenizer) = Tokenizer::from_bytes("t", bytes.to_vec()) {
        try_tokenizer(&tokenizer);
    }
}

fn vocabulary(bytes: &[u8]) {
    let cut = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let (vocabulary, merges) = bytes.split_at(cut);
    let files = [("vocab.json", vocabulary), ("merges.txt", merges.get(1..).unwrap_or_default())];
    if let Ok(Some(tokenizer)) = Tokenizer::beside(&ModelFiles::from_bytes("m", files)) {
        try_tokenizer(&tokenizer);
    }
}

fn try_tokenizer(tokenizer: &Tokenizer) {
    let _ = tokenizer.check_vocab(100, "");
    if let Ok(ids) = tokenizer.encode("What is t1 t2 \u{e9}\u{1f600} <image> haha?", true) {
        let _ = tokenizer.decode(&ids, false);
    }
    let _ = tokenizer.decode(&[0, 1, 2, 3, u32::MAX], true);
}

fn template(bytes: &[u8]) {
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    let Ok(template) = ChatTemplate::new("t", source, ["<s>", "</s>"]) else { return };
    let messages =
        [Message::new("system", "be brief"), Message::new("user", "hi"), Message::new("assistant", "a</think>b")];
    for (add_generation_prompt, enable_thinking) in [(true, None), (false, Some(true))] {
        let now = SystemTime::UNIX_EPOCH;
        let _ = template.render(&messages, &TemplateOptions { add_generation_prompt, enable_thinking, now });
    }
}

fn picture(bytes: &[u8]) {
    if let Ok(image) = Image::decode("p", bytes)
        && let Ok(small) = image.resized(16)
    {
        let _ = small.pixel_values([0.5; 3], [0.5; 3]);
    }
}

fn memory(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("memory");
    std::fs::write(&path, bytes).expect("written");
    if let Ok(mut memory) = EpisodicMemory::open(&path, [6, 4]) {
        let _ = (memory.statistics(), memory.divergence(), memory.decay(0.1));
    }
}

/// A conversation with the demo model that was kept.
fn session(bytes: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("session");
    std::fs::write(&path, bytes).expect("written");
    let mut session = demo();
    if session.load(&path).is_ok() {
        let _ = (session.len(), session.images(), session.push_question("what?"), session.undo());
    }
}

fn demo() -> Session {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    let open = || Engine::open(ModelFiles::demo().expect("the feature demo"), cpu()).expect("the demo model");
    ENGINE.get_or_init(open).session().expect("a session")
}

fn cpu() -> Options {
    Options { device: DeviceChoice::Cpu, context: Some(256), ..Options::default() }
}

/// Codes that are packed are the codes that come out. Bytes: rows, columns, codes.
fn packing(bytes: &[u8]) {
    let &[rows, cols, ref rest @ ..] = bytes else { return };
    let (rows, cols) = (usize::from(rows) + 1, usize::from(cols) + 1);
    let codes: Vec<i8> = rest.iter().cycle().take(rows * cols).map(|&byte| (byte % 3) as i8 - 1).collect();
    if codes.len() != rows * cols {
        return;
    }
    let packed = Packed::new(rows, cols, &codes, 0.5);
    assert_eq!(packed.codes(), codes);
    let words = stack(&[packed.clone(), packed]);
    let parts = Stack(&words);
    assert_eq!((parts.len(), parts.cols()), (2, cols));
    assert_eq!([0, 1].map(|i| parts.part(i).rows), [rows; 2]);
}

/// A safetensors file of `n` bytes in two tensors.
fn packed_of(n: usize) -> Vec<u8> {
    let half = n / 2;
    let header = format!(
        "{{\"__metadata__\":{{\"format\":\"pt\"}},\"a.weight\":{{\"dtype\":\"U8\",\"shape\":[{half}],\"data_offsets\":[0,{half}]}},\
         \"b.weight\":{{\"dtype\":\"F16\",\"shape\":[{},1],\"data_offsets\":[{half},{n}]}}}}",
        half / 2
    );
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![7; n]].concat()
}

fn index_of(names: &[&str]) -> Vec<u8> {
    let pairs: Vec<String> = names.iter().map(|name| format!("{name:?}: \"one.safetensors\"")).collect();
    format!("{{\"metadata\": {{}}, \"weight_map\": {{{}, \"w\": \"two.bin\"}}}}", pairs.join(", ")).into_bytes()
}

/// A torch file with this pickle and one storage of 6 floats; without sums, so that what is changed in it is read.
fn zip_of(pickle: &[u8]) -> Vec<u8> {
    let entries = [("m/data.pkl", pickle), ("m/byteorder", b"little"), ("m/data/0", &torch_files::six())];
    torch_files::without_sums(torch_files::zip_of(torch_files::stored(), &entries))
}

/// A dict of one tensor of 2 × 3 floats.
fn pickle() -> Vec<u8> {
    let tensor = pickled::tensor(torch_files::six_floats(), 0, &[2, 3], &[3, 1]);
    pickled::pickle(2, pickled::dict(&[("w", tensor)]))
}

fn pictures() -> Vec<Vec<u8>> {
    use image::ImageFormat::{Bmp, Gif, Jpeg, Png, WebP};
    let picture = image::RgbImage::from_fn(12, 9, |x, y| image::Rgb([(x * 20) as u8, (y * 25) as u8, (x * y) as u8]));
    let encoded = |format| {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).expect("encoded");
        bytes.into_inner()
    };
    [Png, Jpeg, WebP, Bmp, Gif].map(encoded).to_vec()
}

fn kept(write: impl FnOnce(&Path)) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("kept");
    write(&path);
    std::fs::read(path).expect("written")
}

fn kept_memory() -> Vec<u8> {
    let values = |n: usize| (0..n).map(|i| i as f32 / 8.0).collect::<Vec<f32>>();
    let (mean, logvar, age) = (values(24), -0.5, values(6));
    let (quality, read_count, write_count) = (values(6), values(6), values(6));
    let memory = EpisodicMemory { width: 4, mean, logvar, quality, read_count, write_count, age };
    kept(|path| memory.save(path).expect("written"))
}

fn kept_session() -> Vec<u8> {
    kept(|path| {
        let mut session = demo();
        let picture = Arc::new(Image::from_rgb(4, 4, vec![9; 48]).expect("a picture"));
        session.push_image(&picture).expect("an image");
        session.push_question("What color is the circle?").expect("a question");
        session.save(path).expect("written");
    })
}
