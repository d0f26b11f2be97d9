//! What models are trained for, measured: against the originals' numbers, and as `ternion eval` prints it.
#![cfg(feature = "cli")]

mod support {
    pub mod cli;
    pub mod device;
    pub mod golden;
    pub mod model_stages;
    pub mod numbers;
}

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::cli::{assert_fails, succeeds, ternion, text};
use support::golden::Golden;
use support::model_stages::{golden, main_picture, rms, variants};
use support::numbers::floats;
use tempfile::TempDir;
use ternion::Error;
use ternion::apps::bitgen::{BitGen, BitGenOptions, MemoryNoise};
use ternion::engine::{DeviceChoice, DeviceOptions, Engine, Options, Precision, Progress};
use ternion::files::Image;
use ternion::tools::eval::{CaptionSet, PairEvaluation, PairOptions, Queues, contrastive_loss, evaluate_pairs};

/// Relative rms where a rounding flip of the decoder may spread.
const FREE: f64 = 0.05;

fn bitgens() -> Vec<PathBuf> {
    let found = variants("golden_stage1.safetensors");
    assert!(!found.is_empty(), "no BitGen variant");
    found
}

fn devices() -> Vec<DeviceChoice> {
    [DeviceChoice::Cpu].into_iter().chain(support::device::device().map(|_| DeviceChoice::Gpu)).collect()
}

fn vectors(values: &[f32], d: usize) -> Vec<Vec<f32>> {
    values.chunks(d).map(<[f32]>::to_vec).collect()
}

/// Words `t0 t1 …`, one for each token of a vocabulary, whose first ones begin and end texts.
fn tokenizer(vocab: usize) -> String {
    let name = |i: usize| match i {
        0 => "<s>".to_owned(),
        1 => "</s>".to_owned(),
        i => format!("t{i}"),
    };
    let words: serde_json::Map<String, Value> = (0..vocab).map(|i| (name(i), json!(i))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "decoder": null, "added_tokens": [], "pre_tokenizer": { "type": "WhitespaceSplit" },
        "model": { "type": "WordLevel", "vocab": words, "unk_token": "<s>" },
    })
    .to_string()
}

/// A text that stands for these tokens.
fn words(ids: &[i32]) -> String {
    ids.iter().map(|id| format!("t{id}")).collect::<Vec<_>>().join(" ")
}

/// A folder with a variant's model, its two images with these captions, and what else the entries say.
struct Folder {
    dir: TempDir,
    golden: Golden,
    ids: Vec<Vec<i32>>,
}

impl Folder {
    fn new(variant: &Path, next_token: bool) -> Self {
        let (dir, golden) = (TempDir::new().unwrap(), golden(variant, "golden_stage1.safetensors"));
        for entry in fs::read_dir(variant).unwrap().flatten().filter(|e| e.path().is_file()) {
            fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        let mut config: Value = serde_json::from_slice(&fs::read(variant.join("config.json")).unwrap()).unwrap();
        config["next_token"] = json!(next_token);
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let vocab = *golden.shape("det.decoder_logits").last().unwrap();
        fs::write(dir.path().join("tokenizer.json"), tokenizer(vocab)).unwrap();
        let length = golden.shape("input_ids")[1];
        let ids = golden.i32s("input_ids").chunks(length).map(<[i32]>::to_vec).collect();
        Folder { dir, golden, ids }
    }

    fn pair(&self, i: usize) -> Value {
        json!({ "image": format!("image{i}_224x224.png"), "caption": words(&self.ids[i]) })
    }

    fn list(&self, entries: &[Value]) -> CaptionSet {
        fs::write(self.dir.path().join("captions.json"), json!(entries).to_string()).unwrap();
        CaptionSet::open(self.dir.path()).unwrap()
    }

    fn open(&self, device: DeviceChoice) -> BitGen {
        let device = DeviceOptions { autotune: false, ..device.into() };
        let options = BitGenOptions { device, precision: Precision::F32, ..Default::default() };
        BitGen::open(self.dir.path(), options).unwrap()
    }

    fn measure(&self, model: &BitGen, set: &CaptionSet) -> PairEvaluation {
        evaluate_pairs(model, set, None, &PairOptions::default(), Progress::ignore).unwrap()
    }
}

/// `−ln softmax(logits)[i]`, in 64 bits.
fn surprise(logits: &[f64], i: usize) -> f64 {
    logits.iter().map(|l| (l - logits[i]).exp()).sum::<f64>().ln()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

fn near(found: f64, want: f64, tol: f64) -> bool {
    (found - want).abs() <= tol * want.abs().max(1.0)
}

#[test]
fn contrastive_losses_with_queues_are_the_originals() {
    let mut compared = 0;
    for dir in bitgens() {
        let golden = golden(&dir, "golden_stage1.safetensors");
        let d = golden.shape("det.text_features")[1];
        let [texts, images] = ["det.text_features", "det.image_features"].map(|name| vectors(&golden.f32s(name), d));
        let temperature = golden.f32s("det.temperature")[0];
        let check = |queues: &Queues, want: f32, what: &str| {
            let found = contrastive_loss(&texts, &images, temperature, Some(queues));
            println!("{}: {what}: {found}, the original's is {want}", dir.display());
            assert!(near(found, f64::from(want), 1e-5), "{}: {what}: {found} for {want}", dir.display());
        };
        // Goldens of the repository have the first columns of the queues alone.
        if dir.join("golden_queues.safetensors").exists() {
            let file = support::model_stages::golden(&dir, "golden_queues.safetensors");
            let [texts, images] = ["text_queue", "image_queue"].map(|name| file.f32s(name));
            let queues = Queues { columns: texts.len() / d, texts, images };
            check(&queues, file.f32s("contrastive_loss")[0], "the first columns");
            compared += 1;
        }
        if let Some(queues) = Queues::read(&dir, d).unwrap() {
            check(&queues, golden.f32s("det.contrastive_loss")[0], "all columns");
            assert!(matches!(Queues::read(&dir, d + 4), Err(Error::Shape { .. })));
            compared += 1;
        }
    }
    assert!(compared > 0, "no queues to compare with");
}

#[test]
fn all_objectives_follow_from_the_originals_features_and_logits() {
    for dir in bitgens() {
        let folder = Folder::new(&dir, false);
        let set = folder.list(&[folder.pair(0), folder.pair(1)]);
        let first = folder.list(&[folder.pair(0)]);
        let g = &folder.golden;
        let (cosines, sim) = (wide(&g.f32s("det.cosine_t2i")), wide(&g.f32s("det.sim_t2i_batch")));
        for device in devices() {
            let model = folder.open(device.clone());
            let what = format!("{} on {device:?}", dir.display());
            let found = folder.measure(&model, &set);
            assert_eq!((found.counts, found.queued), ([2, 2, 2], 0));

            let to_images = surprise(&sim[..2], 0) + surprise(&sim[2..], 1);
            let to_texts = surprise(&[sim[0], sim[2]], 0) + surprise(&[sim[1], sim[3]], 1);
            let want = (to_images + to_texts) / 4.0;
            assert!(near(found.contrastive, want, 1e-4), "{what}: {} for {want}", found.contrastive);
            let bce = |cosine: f64| cosine.exp().ln_1p();
            let matches = bce(-cosines[0]) + bce(-cosines[3]);
            let want = (matches + 2.0 * (bce(cosines[1]) + bce(cosines[2]))) / 6.0;
            assert!(near(found.matching, want, 1e-4), "{what}: {} for {want}", found.matching);
            let right = |own: f64, other: f64| f64::from(u8::from(own > other)) / 2.0;
            let to_images = right(cosines[0], cosines[1]) + right(cosines[3], cosines[2]);
            let to_texts = right(cosines[0], cosines[2]) + right(cosines[3], cosines[1]);
            assert_eq!(found.recall, [[to_images, 1.0, 1.0], [to_texts, 1.0, 1.0]], "{what}");

            // The decoder of the first sample alone.
            let (alone, ids) = (folder.measure(&model, &first), &folder.ids[0]);
            let logits = g.f32s("single.decoder_logits");
            let vocab = logits.len() / ids.len();
            let rows = || logits.chunks(vocab).zip(ids);
            let want: f64 = rows().map(|(l, &id)| surprise(&wide(l), id as usize)).sum::<f64>() / ids.len() as f64;
            let top = |l: &[f32]| (0..vocab).max_by(|&a, &b| l[a].total_cmp(&l[b])).unwrap();
            let correct = rows().filter(|(l, id)| top(l) == **id as usize).count();
            let said = alone.reconstruction;
            println!("{what}: cross-entropy {} for {want}, {} right for {correct}", said.cross_entropy(), said.correct);
            assert!(near(said.cross_entropy(), want, FREE), "{what}: {} for {want}", said.cross_entropy());
            assert_eq!((said.tokens, said.perplexity()), (ids.len(), said.cross_entropy().exp()));
            assert!(said.correct.abs_diff(correct) <= 1, "{what}: {} for {correct}", said.correct);
            // One pair: there is no other text, and no other picture.
            assert_eq!((alone.contrastive, alone.recall), (0.0, [[1.0; 3]; 2]), "{what}");
        }
    }
}

#[test]
fn logits_behind_all_tokens_are_the_originals() {
    for dir in bitgens() {
        let folder = Folder::new(&dir, false);
        let ids: Vec<u32> = folder.ids[0].iter().map(|&id| id as u32).collect();
        let image = Image::open(dir.join("image0_224x224.png")).unwrap();
        for device in devices() {
            let model = folder.open(device.clone());
            let context = model.encode(&ids, Some(&image), &MemoryNoise::None).unwrap().context;
            let all = model.logits_behind(&ids, &context, 0..ids.len()).unwrap();
            let off = rms(&all, &folder.golden.f32s("single.decoder_logits"));
            assert!(off < FREE, "{} on {device:?}: off by {off}", dir.display());
            let vocab = model.sizes().vocab;
            assert_eq!(model.logits(&ids, &context).unwrap(), all[(ids.len() - 1) * vocab..]);
            assert_eq!(model.logits_behind(&ids, &context, 2..5).unwrap(), all[2 * vocab..5 * vocab]);
            assert!(matches!(model.logits_behind(&ids, &context, 2..99), Err(Error::Argument { .. })));
        }
    }
}

#[test]
fn a_decoder_of_the_next_token_says_descriptions_to_their_end() {
    let folder = Folder::new(&bitgens()[0], true);
    let mut pair = folder.pair(0);
    let description = [7, 8, 9];
    pair["description"] = json!(words(&description));
    let (set, model) = (folder.list(&[pair]), folder.open(DeviceChoice::Cpu));
    let image = Image::open(folder.dir.path().join("image0_224x224.png")).unwrap();
    // Without a prompt the encoder reads the start of a text; the decoder reads its first token, and last says the end.
    for (prompt, asked) in [(None, vec![0]), (Some("t20 t21"), vec![20, 21])] {
        let options = PairOptions { prompt: prompt.map(str::to_owned), ..Default::default() };
        let found = evaluate_pairs(&model, &set, None, &options, Progress::ignore).unwrap().reconstruction;
        let context = model.encode(&asked, Some(&image), &MemoryNoise::None).unwrap().context;
        let logits = model.logits_behind(&[asked[0], 7, 8, 9], &context, 0..4).unwrap();
        let rows = logits.chunks(model.sizes().vocab).zip([7, 8, 9, 1]);
        let want: f64 = rows.map(|(row, id)| surprise(&wide(row), id)).sum();
        assert_eq!(found.tokens, 4);
        assert!(near(found.nats, want, 1e-5), "{} for {want}", found.nats);
    }
}

#[test]
fn several_captions_of_a_picture_are_all_right() {
    let folder = Folder::new(&bitgens()[0], false);
    let other = |caption: &str| json!({ "image": "image0_224x224.png", "caption": caption, "note": 1 });
    let set = folder.list(&[folder.pair(0), folder.pair(1), other("t5 t6"), other("t7"), folder.pair(1)]);
    let model = folder.open(DeviceChoice::Cpu);
    let mut shown = Vec::new();
    let found = evaluate_pairs(&model, &set, None, &PairOptions::default(), |p| {
        shown.push([p.done, p.total]);
        p.ignore()
    })
    .unwrap();
    assert_eq!((found.counts, found.reconstruction.tokens), ([5, 2, 4], 3 * folder.ids[0].len() + 3));
    assert_eq!(shown, [0, 2, 3, 4, 5, 6].map(|done| [done, 7]));
    // Two pictures: the first or the second, and of four captions any three or one.
    assert_eq!([found.recall[0][1], found.recall[1][1]], [1.0, 1.0]);
    // Batches are averaged by their pairs.
    let options = PairOptions { batch: 2, ..Default::default() };
    let found = evaluate_pairs(&model, &set, None, &options, Progress::ignore).unwrap();
    let loss = |entries: &[Value]| folder.measure(&model, &folder.list(entries)).contrastive;
    let parts = [loss(&[folder.pair(0), folder.pair(1)]), loss(&[other("t5 t6"), other("t7")])];
    assert!(near(found.contrastive, 2.0 * (parts[0] + parts[1]) / 5.0, 1e-6), "{} {parts:?}", found.contrastive);
}

#[test]
fn texts_that_do_not_fit_are_named_by_their_entry() {
    let folder = Folder::new(&bitgens()[0], false);
    let model = folder.open(DeviceChoice::Cpu);
    let long = json!({ "image": "image0_224x224.png", "caption": "t5 ".repeat(1 + model.sizes().positions) });
    let set = folder.list(&[folder.pair(0), long]);
    let error = evaluate_pairs(&model, &set, None, &PairOptions::default(), Progress::ignore).unwrap_err();
    assert!(matches!(error, Error::Argument { .. }) && error.to_string().contains("entry 2"), "{error}");
    let none = PairOptions { batch: 0, ..Default::default() };
    assert!(matches!(evaluate_pairs(&model, &set, None, &none, Progress::ignore), Err(Error::Argument { .. })));
    for (entry, says) in [
        (json!({ "image": "image0_224x224.png" }), "has no \"caption\""),
        (json!({ "image": "image0_224x224.png", "caption": " " }), "\"caption\" is empty"),
        (json!({ "image": "image0_224x224.png", "caption": "t5", "description": 7 }), "\"description\" is a number"),
        (json!({ "image": "../x.png", "caption": "t5" }), "out of the folder"),
    ] {
        fs::write(folder.dir.path().join("captions.json"), json!([folder.pair(0), entry]).to_string()).unwrap();
        let error = CaptionSet::open(folder.dir.path()).unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("captions.json: entry 2"), "{error}");
    }
}

/// Log-likelihoods of tokens after logits, one row for each.
fn likelihoods(logits: &[f32], ids: &[u32]) -> Vec<f32> {
    let rows = logits.chunks(logits.len() / ids.len()).zip(ids);
    rows.map(|(l, &id)| -surprise(&wide(l), id as usize) as f32).collect()
}

fn ids(golden: &Golden, name: &str) -> Vec<u32> {
    golden.i32s(name).into_iter().map(|id| id as u32).collect()
}

#[test]
fn likelihoods_of_an_embernet_are_those_of_the_originals_logits() {
    // One rounding flip in another variant's image may move a router's choice, and a token's likelihood with it.
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/embernet/tiny");
    let greedy = golden(&dir, "golden_greedy.safetensors");
    let (prompt, said) = (ids(&golden(&dir, "golden_prefill.safetensors"), "input_ids"), ids(&greedy, "generated_ids"));
    let want = likelihoods(&greedy.f32s("step_logits"), &said);
    let picture = Image::open(dir.join(format!("image_{}.png", main_picture(&dir)))).unwrap();
    for device in devices() {
        let what = format!("{} on {device:?}", dir.display());
        let engine = unmeasured(&dir, device);
        let (mut session, vocab) = (engine.session().unwrap(), engine.info().vocab as u32);
        assert!(matches!(session.log_likelihood(&said), Err(Error::Argument { .. })), "an empty session");
        session.push_image(&picture).unwrap();
        session.push_tokens(&prompt).unwrap();
        let found = session.log_likelihood(&said[..9]).unwrap();
        let found = [found, session.log_likelihood(&said[9..]).unwrap()].concat();
        // A rounding flip in the image may spread.
        let off = rms(&found, &want);
        println!("{what}: log-likelihoods are off by {off:.1e}");
        assert!(off < FREE, "{what}: {found:?} for {want:?}");
        assert_eq!(session.tokens(), [&prompt[..], &said].concat());
        session.truncate(prompt.len());
        let again = session.log_likelihood(&said[..1]).unwrap()[0];
        assert!((again - found[0]).abs() < 1e-5, "{what}: {again} for {} once more", found[0]);
        let room = session.room();
        assert!(matches!(session.log_likelihood(&vec![3; room + 1]), Err(Error::ContextFull { .. })));
        assert!(matches!(session.log_likelihood(&[vocab]), Err(Error::Argument { .. })));
    }
}

#[test]
fn likelihoods_of_an_embernet_without_an_image_are_those_of_the_originals_logits() {
    for dir in variants("golden_extra.safetensors") {
        let extra = golden(&dir, "golden_extra.safetensors");
        let (text, logits) = (ids(&extra, "text_only.input_ids"), extra.f32s("text_only.logits"));
        let want = likelihoods(&logits[..logits.len() / text.len() * (text.len() - 1)], &text[1..]);
        for device in devices() {
            let mut session = unmeasured(&dir, device.clone()).session().unwrap();
            session.push_tokens(&text[..1]).unwrap();
            let off = rms(&session.log_likelihood(&text[1..]).unwrap(), &want);
            println!("{} on {device:?}: without an image they are off by {off:.1e}", dir.display());
            assert!(off < FREE, "{} on {device:?}: off by {off}", dir.display());
        }
    }
}

/// An engine in full precision that measures no tuning.
fn unmeasured(dir: &Path, device: DeviceChoice) -> Engine {
    let options = Options { device, autotune: false, precision: Precision::F32, ..Options::default() };
    Engine::open(dir, options).unwrap()
}

#[test]
fn the_command_measures_a_bitgen_and_keeps_its_memory() {
    let folder = Folder::new(&bitgens()[0], false);
    folder.list(&[folder.pair(0), folder.pair(1)]);
    let (dir, memory) = (text(folder.dir.path()), text(folder.dir.path().join("kept.safetensors")));
    let args = ["eval", "-m", &dir, "--data", &dir, "--device", "cpu", "--precision", "f32"];
    fn joined<'a>(args: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
        [args, more].concat()
    }
    let ran = ternion(&joined(&args, &["--json", "--memory", &memory]));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let out: Value = serde_json::from_str(&ran.out).expect("JSON and nothing else");
    let found = folder.measure(&folder.open(DeviceChoice::Cpu), &CaptionSet::open(folder.dir.path()).unwrap());
    assert_eq!(out["contrastive_loss"].as_f64().map(|v| near(v, found.contrastive, 1e-6)), Some(out["queued"] == 0));
    assert_eq!((&out["pairs"], &out["batch"]), (&json!(2), &json!(128)));
    let close =
        |value: &Value, want: f64| assert!(near(value.as_f64().expect("a number"), want, 1e-6), "{value} {want}");
    close(&out["matching_loss"], found.matching);
    close(&out["memory_kl"], found.memory_kl);
    close(&out["reconstruction"]["perplexity"], found.reconstruction.perplexity());
    close(&out["text_to_picture"]["recall_at_1"], found.recall[0][0]);
    close(&out["picture_to_text"]["recall_at_10"], 1.0);

    // The reads of the first run are counted on in the second.
    let reads = || -> f32 {
        let file = safetensors::SafeTensors::deserialize(&fs::read(&memory).unwrap()).map(|f| {
            let words: Vec<u32> = bytemuck::pod_collect_to_vec(f.tensor("memory_read_count").unwrap().data());
            floats(&words).iter().sum()
        });
        file.unwrap()
    };
    let once = reads();
    assert!(once > 0.0);
    let table = succeeds(&joined(&args, &["--memory", &memory]));
    assert_eq!(reads(), 2.0 * once);
    let names: Vec<&str> = table.lines().filter_map(|l| l.split("  ").next()).collect();
    assert_eq!(names.len(), 8, "{table}");
    assert!(names[1].contains("ITC") && names[5].contains("KL") && names[7].starts_with("picture -> text"), "{table}");

    for (more, says) in [
        (&["--answers", &text(folder.dir.path().join("a.json"))][..], "answers"),
        (&["--batch", "0"], "batch"),
        (&["--context", "7"], "context"),
        (&["--memory", &text(folder.dir.path().join("config.json"))], "config.json"),
    ] {
        assert_fails(&ternion(&joined(&args, more)), more, &[says]);
    }
    fs::rename(folder.dir.path().join("captions.json"), folder.dir.path().join("questions.json")).unwrap();
    let question = json!([{ "image": "image0_224x224.png", "family": "f", "question": "q", "answer": "a" }]);
    fs::write(folder.dir.path().join("questions.json"), question.to_string()).unwrap();
    assert_fails(&ternion(&args), &args, &["questions.json", "captions.json", "BitGen"]);
}
