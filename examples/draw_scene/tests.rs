//! `cargo test --release --example draw_scene`

use clap::ValueEnum;

use crate::canvas::SIZE;
use crate::scene::{BLUE, COLORS, Color, Family, Scene};

fn draw(family: Family, seed: u64) -> Scene {
    Scene::draw(family, seed).expect("letters that the sheet has")
}

/// The answer to the question that begins so.
fn answer<'a>(scene: &'a Scene, question: &str) -> Option<&'a str> {
    scene.questions.iter().find(|q| q.text.starts_with(question)).map(|q| q.answer.as_str())
}

#[test]
fn a_seed_stands_for_one_scene() {
    for &family in Family::value_variants() {
        let [a, b, other] = [7, 7, 8].map(|seed| draw(family, seed));
        assert_eq!(a.picture.as_raw(), b.picture.as_raw(), "{family:?}");
        assert_ne!(a.picture.as_raw(), other.picture.as_raw(), "{family:?}");
        assert_eq!(a.questions[a.picked].text, b.questions[b.picked].text, "{family:?}");
    }
}

/// A hash of each family's scene 7, so that no platform and no new version of a crate changes scenes unnoticed.
#[test]
fn scenes_stay_as_they_are() {
    let hash = |bytes: &[u8]| bytes.iter().fold(0_u32, |h, &b| h.wrapping_mul(31).wrapping_add(u32::from(b)));
    let hashes: Vec<u32> = Family::value_variants().iter().map(|&f| hash(draw(f, 7).picture.as_raw())).collect();
    assert_eq!(hashes, [3342978245, 1777136164, 1735331584, 2845179953, 3396639469, 2856775636, 164355822, 2692647420]);
}

#[test]
fn questions_are_picked_by_weight() {
    for &family in Family::value_variants() {
        for seed in 0..100 {
            let scene = draw(family, seed);
            assert!(scene.questions[scene.picked].weight > 0, "{family:?} {seed}");
        }
    }
    // Of the text's four questions, one has half of the weight.
    let heavy = (0..1000).filter(|&seed| draw(Family::VisionOcr, seed).picked == 0).count();
    assert!((440..560).contains(&heavy), "{heavy} of 1000");
}

/// The named colour that a pixel is a shade of.
fn color(pixel: [u8; 3]) -> Option<Color> {
    COLORS.into_iter().find(|c| c.ink.iter().zip(pixel).all(|(&a, b)| a.abs_diff(b) <= 10))
}

#[test]
fn charts_answer_what_they_show() {
    for seed in 0..200 {
        let scene = draw(Family::CodeMathChart, seed);
        // The bars' colours along their foot, and how high each reaches.
        let mut bars: Vec<(&str, usize)> = Vec::new();
        for x in 12..SIZE {
            let column = |y| color(scene.picture.get_pixel(x, y).0).map(|c| c.name);
            if let Some(name) = column(114)
                && bars.last().is_none_or(|b| b.0 != name)
            {
                bars.push((name, (0..115).filter(|&y| column(y) == Some(name)).count()));
            }
        }
        let list = bars.iter().map(|b| b.0).collect::<Vec<_>>().join(" ");
        assert_eq!(answer(&scene, "List the bars"), Some(list.as_str()), "{seed}");
        assert_eq!(answer(&scene, "How many bars"), Some(bars.len().to_string().as_str()), "{seed}");
        bars.sort_by_key(|b| b.1);
        let asked = |what| scene.questions.iter().find(|q| q.text.contains(what)).map(|q| q.answer.as_str());
        assert_eq!(asked("tallest"), bars.last().map(|b| b.0), "{seed}");
        assert_eq!(asked("shortest"), bars.first().map(|b| b.0), "{seed}");
    }
}

#[test]
fn scenes_show_the_colors_that_they_name() {
    for seed in 0..200 {
        let scene = draw(Family::SpatialReasoning, seed);
        let Some(count) = answer(&scene, "How many blue shapes") else { continue };
        let blue = scene.picture.pixels().any(|p| color(p.0) == Some(BLUE));
        assert_eq!(count != "0", blue, "{seed}");
    }
}
