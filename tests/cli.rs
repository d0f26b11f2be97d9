//! The `ternion` command as a user runs it: what it prints, its exit codes, and what bad inputs get.
#![cfg(feature = "cli")]

mod support {
    pub mod cli;
    pub mod golden;
}

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::cli::{Ran, assert_fails, command, fed, has_adapter, succeeds, ternion, text};
use support::golden::golden_root;
use tempfile::TempDir;
use ternion::engine::{Precision, Progress};
use ternion::files::Weights;
use ternion::tools::convert::convert;
use ternion::unstable::models;
use ternion::unstable::models::{LoadOptions, TextShape};

fn tiny() -> PathBuf {
    golden_root().join("embernet/tiny")
}

fn tokenizer() -> PathBuf {
    golden_root().join("tokenizer.json")
}

fn picture() -> PathBuf {
    tiny().join("image_97x61.png")
}

/// `ternion run` on a model, with more options.
fn run_on(model: &Path, more: &[&str]) -> Vec<String> {
    let args = ["run", "-m", &text(model), "--tokenizer", &text(tokenizer()), "-p", "What is it?", "-n", "12"];
    args.iter().chain(more).map(|&s| s.to_owned()).collect()
}

fn borrowed(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[track_caller]
fn answers(model: &Path, more: &[&str]) -> String {
    succeeds(&borrowed(&run_on(model, more)))
}

/// `ternion run` on tiny with later options in place of the usual ones.
#[track_caller]
fn run_fails(more: &[&str], texts: &[&str]) {
    let (model, tokenizer) = (text(tiny()), text(tokenizer()));
    let mut args = vec!["run", "-m", &model, "--device", "cpu", "--tokenizer", &tokenizer];
    args.extend(more);
    assert_fails(&ternion(&args), &args, texts);
}

#[test]
fn run_answers_on_the_cpu_and_on_a_gpu() {
    let image = text(picture());
    let on_cpu = answers(&tiny(), &["--device", "cpu", "--image", &image]);
    assert!(!on_cpu.trim().is_empty());
    for (threads, said) in [("1", "1 thread,"), ("3", "3 threads,")] {
        let ran =
            ternion(&borrowed(&run_on(&tiny(), &["--device", "cpu", "-v", "--threads", threads, "--image", &image])));
        assert_eq!((ran.code, ran.out), (Some(0), on_cpu.clone()), "{threads} threads");
        assert!(ran.err.contains(&format!("device: CPU, {said}")), "{}", ran.err);
    }
    if has_adapter() {
        assert!(!answers(&tiny(), &["--device", "gpu", "--image", &image]).trim().is_empty());
    }
}

#[test]
fn run_says_where_it_runs_and_with_v_how_fast() {
    let (model, args) = (tiny(), ["--device", "cpu", "-v", "--image", &text(picture())]);
    let ran = ternion(&borrowed(&run_on(&model, &args)));
    let wanted =
        ["device: CPU", "(as asked)", "prefill:", "image:", "ms/token", "tokens/s", "vision_ocr", "agentic_reasoning"];
    for wanted in wanted {
        assert!(ran.err.contains(wanted), "no {wanted:?}: {}", ran.err);
    }
}

#[test]
fn equal_seeds_give_equal_text() {
    let drawn = |seed| answers(&tiny(), &["--device", "cpu", "--temp", "1.5", "--seed", seed]);
    assert_eq!(drawn("7"), drawn("7"));
    let some = ["1", "2", "3", "4"].map(drawn);
    assert!(some.iter().any(|t| *t != some[0]), "the seed changes nothing");
}

#[test]
fn a_prompt_comes_from_an_argument_from_stdin_or_from_a_file() {
    let dir = TempDir::new().expect("a directory");
    let file = dir.path().join("question.txt");
    fs::write(&file, "What is it?\r\n").expect("written");
    let (model, tokenizer) = (text(tiny()), text(tokenizer()));
    let args = |prompt: &str| {
        let args = ["run", "-m", &model, "--tokenizer", &tokenizer, "--device", "cpu", "-n", "12", "-p", prompt];
        args.map(str::to_owned).to_vec()
    };
    let want = succeeds(&borrowed(&args("What is it?")));
    assert_eq!(succeeds(&borrowed(&args(&format!("@{}", file.display())))), want);
    assert_eq!(fed(&borrowed(&args("-")), b"What is it?\n").out, want);
    let broken = args("-");
    assert_fails(&fed(&borrowed(&broken), b"abc\xFFdef"), &borrowed(&broken), &["stdin", "UTF-8", "byte 3"]);
}

#[test]
fn a_converted_model_gives_the_same_text() {
    let dir = TempDir::new().expect("a directory");
    let out = dir.path().join("packed");
    succeeds(&["convert", &text(tiny()), &text(&out), "--tokenizer", &text(tokenizer())]);
    let names: Vec<_> = fs::read_dir(&out).expect("a directory").map(|e| e.expect("an entry").file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    let size = |dir: &Path| fs::metadata(dir.join("model.safetensors")).expect("a model").len();
    assert!(size(&out) * 5 < size(&tiny()));
    for more in [&["--image", &text(picture()) as &str][..], &[]] {
        let more = [more, &["--device", "cpu"]].concat();
        assert_eq!(answers(&out, &more), answers(&tiny(), &more));
    }
    // The copied tokenizer is found, and a second conversion may replace the first.
    succeeds(&["run", "-m", &text(&out), "-p", "x", "-n", "2", "--device", "cpu"]);
    succeeds(&["convert", &text(tiny()), &text(&out), "--threads", "1"]);
}

#[test]
fn every_weight_of_a_converted_model_has_the_same_words() {
    for precision in [Precision::F16, Precision::F32] {
        for input in ["embernet/tiny", "embernet/oddgrid", "embernet/oddgrid/pytorch_model.bin"] {
            let (dir, input) = (TempDir::new().expect("a directory"), golden_root().join(input));
            convert(&input, dir.path(), None, precision, Progress::ignore).unwrap_or_else(|e| panic!("{input:?}: {e}"));
            let (old, new) = (Weights::open(&input).expect("opens"), Weights::open(dir.path()).expect("opens"));
            let load = LoadOptions { max_binding: 10_000, ..LoadOptions::anywhere(precision.pack()) };
            let (a, b) =
                (models::open_chat(&input, &old, load).expect("opens"), models::open_chat(dir.path(), &new, load));
            let b = b.expect("a packed model opens");
            assert_eq!(a.config(), b.config());
            let kv_dtype = precision.pack().dtype();
            let shape =
                TextShape { max_rows: 2, max_outputs: 1, kv_rows: 8, context: 8, sessions: 1, kv_dtype, images: true };
            let plans = [b.record_text(&shape).expect("records"), b.record_image().expect("records")];
            for (weight, _) in plans.iter().flat_map(|p| p.weights()) {
                let words = |w: &Weights| w.load(weight).unwrap_or_else(|e| panic!("{input:?}: {e}"));
                assert!(words(&old) == words(&new), "{input:?}: {weight} differs");
            }
        }
    }
}

#[test]
fn convert_never_overwrites_its_input_or_strangers() {
    let dir = TempDir::new().expect("a directory");
    for name in ["config.json", "model.safetensors", "siglip_vision_config.json"] {
        fs::copy(tiny().join(name), dir.path().join(name)).expect("copied");
    }
    let before = fs::read(dir.path().join("model.safetensors")).expect("read");
    let input = text(dir.path().join("model.safetensors"));
    for out in [dir.path().to_owned(), dir.path().join("../").join(dir.path().file_name().expect("a name"))] {
        let args = ["convert", &input, &text(out)];
        assert_fails(&ternion(&args), &args, &["holds the input"]);
    }
    let other = TempDir::new().expect("a directory");
    fs::write(other.path().join("embernet_config.json"), "{}").expect("written");
    let args = ["convert", &input, &text(other.path())];
    assert_fails(&ternion(&args), &args, &["embernet_config.json", "empty directory"]);
    assert_eq!(fs::read(&input).expect("read"), before);
}

#[test]
fn inspect_counts_what_the_configuration_counts() {
    let found: Value = serde_json::from_str(&succeeds(&["inspect", &text(tiny()), "--json"])).expect("JSON");
    let config = fs::read(tiny().join("config.json")).expect("a config");
    let config: Value = serde_json::from_slice(&config).expect("JSON");
    let counts = &config["parameter_counts"];
    let part = |name: &str| {
        let list = found["components"].as_array().expect("components");
        list.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no {name}"))["parameters"].clone()
    };
    let vision = &counts["vision_encoder_breakdown"];
    assert_eq!(part("vision encoder (SigLIP)"), vision["encoder"]);
    for name in ["compressor", "pooler", "projector"] {
        assert_eq!(part(name), vision[name]);
    }
    assert_eq!(part("decoder"), counts["decoder_total"]);
    let tensors = found["tensors"].as_array().expect("tensors");
    let tensor = |name: &str| tensors.iter().find(|t| t["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    let q = tensor("decoder.layers.0.attention.q_proj.weight");
    assert_eq!((&q["packed"], &q["shape"], &q["stored"]), (&json!("1 bit"), &json!([64, 64]), &json!("f32")));
    let shares = q["shares"].as_array().expect("shares").iter().filter_map(Value::as_f64).sum::<f64>();
    assert!((shares - 1.0).abs() < 1e-9 && q["scale"].as_f64() > Some(0.0));
    assert_eq!(tensor("decoder.embed_tokens.weight")["packed"], "f16");
    assert_eq!(tensor("image_newline")["packed"], "not read");
    let table = succeeds(&["inspect", &text(tiny()), "--tensors"]);
    assert!(table.contains("decoder.norm.weight") && table.contains("909624"), "{table}");
    let card = succeeds(&["inspect", &text(tiny())]);
    assert!(!card.contains("decoder.norm.weight") && card.contains("909624"), "{card}");
    let info = &found["card"];
    let sizes = &config["language_decoder"];
    assert_eq!([&info["layers"], &info["vocab"]], [&sizes["num_layers"], &sizes["vocab_size"]]);
    assert_eq!(info["experts"].as_array().map(Vec::len), Some(8));
    assert!(info["memory"]["weight_bytes"].as_u64() > Some(909_624 / 4), "{info}");
}

#[test]
fn a_model_that_needs_more_memory_than_it_may_is_refused() {
    run_fails(&["-p", "x", "--max-memory", "100KiB"], &["--max-memory", "102400"]);
    for wrong in ["", "x", "1kb", "1.5GiB", "99999999999GiB"] {
        run_fails(&["-p", "x", "--max-memory", wrong], &["--max-memory", "as 800MiB"]);
    }
    assert!(!answers(&tiny(), &["--device", "cpu", "--max-memory", "1GiB"]).is_empty());
}

#[test]
fn batch_invariant_is_for_sessions() {
    let answer = |more: &[&str]| answers(&tiny(), &[&["--device", "cpu"], more].concat());
    assert_eq!(answer(&["--batch-invariant"]), answer(&[]));
    let bitgen = text(golden_root().join("bitgen_stage1/dino_tiny"));
    let commands: [&[&str]; 3] =
        [&["check", "-m", &text(tiny())], &["bench", "-m", &bitgen], &["run", "-p", "x", "-m", &bitgen]];
    for command in commands {
        let args = [command, &["--device", "cpu", "--batch-invariant"]].concat();
        assert_fails(&ternion(&args), &args, &["batch-invariant"]);
    }
}

#[test]
fn devices_names_what_auto_takes() {
    let out = succeeds(&["devices"]);
    assert!(out.lines().any(|l| l.starts_with("auto: ") && l.contains('(')), "{out}");
}

#[test]
fn check_passes_and_finds_a_divergence() {
    let model = text(tiny());
    let devices: &[&str] = if has_adapter() { &["cpu", "gpu"] } else { &["cpu"] };
    for device in devices {
        for more in [["--precision", "f16"], ["--precision", "f32"], ["--head", "int8"], ["--kv", "int8"]] {
            let out = succeeds(&[&["check", "-m", &model, "--device", device], &more[..]].concat());
            assert!(out.contains("nodes agree") && out.contains("ternary_matmul"), "{out}");
        }
    }
    // Sums in another order never agree to the last bit everywhere.
    let strict = ternion(&["check", "-m", &model, "--device", "cpu", "--tolerance", "0"]);
    assert_eq!(strict.code, Some(1), "{}", strict.err);
    assert!(strict.out.contains("the first is") && strict.out.contains("expected"), "{}", strict.out);
}

#[test]
fn chat_reads_piped_lines() {
    let (model, tokenizer, image) = (text(tiny()), text(tokenizer()), text(picture()));
    let args = ["chat", "-m", &model, "--tokenizer", &tokenizer, "--device", "cpu", "-n", "8", "--image", &image];
    let ran = fed(&args, b"What is it?\n/stats\nAnd now?\n/reset\n\nWhat is it?");
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let lines: Vec<&str> = ran.out.lines().collect();
    assert!(lines.len() >= 3 && lines.first() == lines.last(), "{lines:?}");
    assert!(ran.err.contains("prefill:"), "{}", ran.err);

    // An error is told and the conversation goes on.
    let ran = fed(&args, b"/image nowhere.png\nWhat is it?\n/quit\nignored\n");
    assert_fails(&ran, &args, &["nowhere.png"]);
    assert_eq!(ran.out.lines().next(), lines.first().copied());
}

#[test]
fn a_closed_pipe_is_no_error() {
    let mut child = command(&["inspect", &text(tiny())]).spawn().expect("the command runs");
    drop(child.stdout.take());
    let ran = Ran::from(child.wait_with_output().expect("the command ends"));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
}

#[test]
fn files_that_are_not_what_they_should_be_are_named() {
    let dir = TempDir::new().expect("a directory");
    let html = dir.path().join("page.safetensors");
    fs::write(&html, "<!DOCTYPE html><html>not found</html>").expect("written");
    let args = ["run", "-m", "nowhere", "-p", "x"];
    assert_fails(&ternion(&args), &args, &["nowhere"]);
    for command in [&["inspect"][..], &["check", "-m"], &["run", "-p", "x", "-m"]] {
        let html = text(&html);
        let args = [command, &[html.as_str()]].concat();
        assert_fails(&ternion(&args), &args, &["page.safetensors", "HTML"]);
    }
    run_fails(&["-p", "x", "--image", &text(&html)], &["page.safetensors", "HTML"]);
    run_fails(&["-p", "x", "--image", "nowhere.png"], &["nowhere.png"]);
    run_fails(&["-p", "@nowhere.txt"], &["nowhere.txt"]);
    let cut = dir.path().join("cut.png");
    fs::write(&cut, &fs::read(picture()).expect("read")[..2000]).expect("written");
    run_fails(&["-p", "x", "--image", &text(&cut)], &["cut.png"]);
}

#[test]
fn values_out_of_range_are_refused_with_the_range() {
    run_fails(&["-p", ""], &["prompt", "empty"]);
    run_fails(&["-p", "x", "-c", "8"], &["context of 8"]);
    run_fails(&["-p", "x", "-c", "257"], &["context", "257", "256"]);
    run_fails(&["-p", "x", "-n", "1000"], &["1000", "context of 256"]);
    run_fails(&["-p", "x", "-n", "0"], &["max-tokens"]);
    run_fails(&["-p", "x", "--threads", "0"], &["threads", "1..=1024"]);
    run_fails(&["-p", "x", "--threads", "1025"], &["threads", "1..=1024"]);
    for args in [["inspect", "--threads", "0"], ["bench", "--threads", "0"], ["check", "--threads", "1025"]] {
        assert_fails(&ternion(&args), &args, &["threads", "1..=1024"]);
    }
    run_fails(&["-p", "x", "--temp", "-1"], &["temperature", "-1"]);
    run_fails(&["-p", "x", "--temp", "nan"], &["temperature", "NaN"]);
    run_fails(&["-p", "x", "--temp", "1", "--top-p", "0"], &["top_p"]);
    run_fails(&["-p", "x", "--repeat-penalty", "0"], &["repetition_penalty"]);
    run_fails(&["-p", "x", "--min-p", "1.5"], &["min_p", "1.5"]);
    run_fails(&["-p", "x", "--presence-penalty", "nan"], &["presence_penalty"]);
    run_fails(&["-p", "x", "--frequency-penalty", "inf"], &["frequency_penalty"]);
    run_fails(&["-p", "x", "--logit-bias", "5"], &["--logit-bias", "TOKEN=NUMBER"]);
    run_fails(&["-p", "x", "--logit-bias", "5=1,6=inf"], &["logit_bias", "token 6"]);
    run_fails(&["-p", "x", "--logit-bias", "5=1", "--logit-bias", "512=1"], &["token 512", "vocabulary of 512"]);
    let many = (0..257).map(|token| format!("{token}=1")).collect::<Vec<_>>().join(",");
    run_fails(&["-p", "x", "--logit-bias", &many], &["logit_bias", "257", "256"]);
    let model = text(tiny());
    for device in ["no such device", "77"] {
        let args = ["run", "-m", &model, "-p", "x", "--device", device];
        assert_fails(&ternion(&args), &args, &[device, "device"]);
    }
}

#[test]
fn run_writes_a_conversation_as_it_is_told() {
    let usual = answers(&tiny(), &["--device", "cpu"]);
    assert_eq!(answers(&tiny(), &["--device", "cpu", "--hide-thoughts"]), usual);
    assert_ne!(answers(&tiny(), &["--device", "cpu", "--no-template"]), usual);
    run_fails(&["-p", "x", "--system", "Be brief."], &["role", "\"system\"", "EmberNet"]);
    run_fails(&["-p", "x", "--system", "a", "--no-template"], &["--system", "--no-template"]);
    let ran = ternion(&borrowed(&run_on(&tiny(), &["--device", "cpu", "--no-think"])));
    assert_eq!((ran.code, ran.out), (Some(0), usual));
    assert!(ran.err.contains("--no-think change nothing"), "{}", ran.err);
}

#[test]
fn an_answer_that_repeats_itself_without_end_is_ended() {
    let (model, tokenizer) = (text(tiny()), text(tokenizer()));
    for device in if has_adapter() { &["cpu", "gpu"][..] } else { &["cpu"] } {
        let same = ["--device", device, "--logit-bias", "7=1000", "-p", "x", "-n", "200", "--json"];
        let args = [&["run", "-m", &model, "--tokenizer", &tokenizer], &same[..]].concat();
        let count = |args: &[&str]| {
            let answer: serde_json::Value = serde_json::from_str(&succeeds(args)).expect("JSON");
            (answer["tokens"].as_array().expect("tokens").len(), answer["stop"].as_str().expect("a reason").to_owned())
        };
        assert_eq!(count(&args), (96, "repetition".to_owned()), "{device}");
        assert_eq!(count(&[&args[..], &["--allow-loops"]].concat()), (200, "length".to_owned()), "{device}");
    }
    let args = ["run", "-m", &model, "--tokenizer", &tokenizer, "--device", "cpu", "--logit-bias", "7=1000", "-p", "x"];
    assert!(ternion(&args).err.contains("note: the answer repeated itself and was ended"));
}

#[test]
fn a_repository_is_not_fetched_and_the_version_says_what_is_in_the_program() {
    for name in ["microsoft/bitnet-b1.58-2B-4T", "hf:microsoft/bitnet-b1.58-2B-4T"] {
        let args = ["run", "-m", name, "-p", "x"];
        let download = "hf download microsoft/bitnet-b1.58-2B-4T --local-dir bitnet-b1.58-2B-4T";
        assert_fails(&ternion(&args), &args, &[name, download]);
    }
    let args = ["run", "-m", "no/such/model", "-p", "x"];
    assert_fails(&ternion(&args), &args, &["no/such/model: there is no such file or folder"]);
    let out = support::cli::succeeds(&["--version"]);
    for part in [concat!("ternion ", env!("CARGO_PKG_VERSION")), "features: cli", "backends: CPU (", "vulkan"] {
        assert!(out.contains(part), "{part}: {out}");
    }
}

#[test]
fn a_model_samples_as_its_files_recommend() {
    let dir = TempDir::new().expect("a directory");
    for name in ["model.safetensors", "siglip_vision_config.json", "config.json"] {
        fs::copy(tiny().join(name), dir.path().join(name)).expect("copied");
    }
    let recommends = |json: &str| fs::write(dir.path().join("generation_config.json"), json).expect("written");
    let run = |more: &[&str]| ternion(&borrowed(&run_on(dir.path(), &[&["--device", "cpu", "-v"], more].concat())));
    recommends(r#"{"do_sample": true, "temperature": 0.5, "top_k": 7, "min_p": 0.1}"#);
    let (model, tokenizer) = (text(dir.path()), text(tokenizer()));
    let chat = ["chat", "-m", &model, "--device", "cpu", "--tokenizer", &tokenizer, "-n", "2", "-v", "--seed", "3"];
    for err in [run(&["--seed", "3"]).err, fed(&chat, b"What is it?\n").err] {
        for part in ["generation_config.json recommends temperature 0.5, top p 1, min p 0.1, top k 7", "seed:      3"] {
            assert!(err.contains(part), "{part:?} is not in {err}");
        }
    }
    let given = run(&["--temp", "0", "--min-p", "0.2", "--top-p", "0.5"]).err;
    assert!(given.contains(".json recommends top k 7") && !given.contains("seed:"), "{given}");
    assert!(given.contains("--top-p and --min-p without effect"), "{given}");
    recommends(r#"{"do_sample": false, "temperature": 0.5, "presence_penalty": 1000}"#);
    let greedy = run(&[]);
    assert!(greedy.err.contains("recommends temperature 0, presence penalty 1000"), "{}", greedy.err);
    assert_eq!(greedy.out, run(&["--presence-penalty", "1000"]).out);
    assert_ne!(greedy.out, run(&["--presence-penalty", "-1000"]).out);
    let args = ["run", "-m", &model, "--device", "cpu", "--tokenizer", &tokenizer, "-p", "x"];
    for (json, key) in [(r#"{"top_k": "many"}"#, "top_k"), (r#"{"top_p": 1.5}"#, "top_p")] {
        recommends(json);
        assert_fails(&ternion(&args), &args, &["generation_config.json", key]);
    }
}

#[test]
fn a_bias_makes_an_answer_of_one_token_and_bans_it() {
    let usual = answers(&tiny(), &["--device", "cpu"]);
    let forced = answers(&tiny(), &["--device", "cpu", "--logit-bias", "77=1e9"]);
    let banned = answers(&tiny(), &["--device", "cpu", "--logit-bias", "76=-2,77=1e9", "--logit-bias", "77=-inf"]);
    assert!(forced != usual && forced != banned, "{usual} {forced} {banned}");
}

#[test]
fn a_tokenizer_beyond_the_vocabulary_names_the_right_one() {
    let dir = TempDir::new().expect("a directory");
    let mut json: Value = serde_json::from_slice(&fs::read(tokenizer()).expect("read")).expect("JSON");
    json["model"]["vocab"]["beyond"] = 50_000.into();
    let file = dir.path().join("tokenizer.json");
    fs::write(&file, json.to_string()).expect("written");
    let (model, file) = (text(tiny()), text(&file));
    let args = ["run", "-m", &model, "--device", "cpu", "-p", "x", "--tokenizer", &file];
    assert_fails(&ternion(&args), &args, &["tokenizer.json", "50000", "512", "TinyLlama"]);
}

#[test]
fn a_broken_configuration_is_refused_with_its_key() {
    let dir = TempDir::new().expect("a directory");
    for name in ["model.safetensors", "siglip_vision_config.json"] {
        fs::copy(tiny().join(name), dir.path().join(name)).expect("copied");
    }
    let good: Value = serde_json::from_slice(&fs::read(tiny().join("config.json")).expect("read")).expect("JSON");
    let fails = |config: &str, texts: &[&str]| {
        fs::write(dir.path().join("config.json"), config).expect("written");
        let model = text(dir.path());
        let args = ["run", "-m", &model, "--device", "cpu", "-p", "x"];
        assert_fails(&ternion(&args), &args, texts);
    };
    for (key, value) in [("hidden_size", 1u64 << 40), ("num_layers", 0), ("num_attention_heads", 7)] {
        let mut config = good.clone();
        config["language_decoder"][key] = value.into();
        fails(&config.to_string(), &[key, &value.to_string()]);
    }
    let mut config = good.clone();
    config["language_decoder"]["num_layers"] = 4.into();
    fails(&config.to_string(), &["tensors are missing", "decoder.layers.3."]);
    config["model_type"] = "mamba".into();
    fails(&config.to_string(), &["config.json", "mamba", "EmberNet"]);
    fails("{ \"model_type\": ", &["config.json"]);
    fails("[]", &["config.json"]);
}
