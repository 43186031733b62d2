//! `addenda model locate`: facts traced, and what was found as heat maps in the terminal and as SVG.

use std::path::{Path, PathBuf};

use addenda_proto::addenda::v1::{Effect, Fact, GetLocationRequest, LocateRequest, Location};
use clap::Args;
use serde::Deserialize;

use crate::cli::client::Client;
use crate::cli::console::Console;
use crate::cli::error::{Error, Result};
use crate::cli::job::finish;

#[derive(Debug, Args)]
pub(crate) struct LocateArgs {
    /// Facts that the model may know: a JSON array of objects with `subject`, `template` or `prompt` (with {} where
    /// the subject stands), and `attribute` or `target`
    #[arg(long, value_name = "FILE")]
    known: Option<PathBuf>,
    /// How many of them are asked; those that the model knows are traced
    #[arg(long, value_name = "N", default_value_t = 60)]
    facts: usize,
    /// Draws of noise for each
    #[arg(long, value_name = "N", default_value_t = 4)]
    draws: u32,
    /// Layers to suggest
    #[arg(long, value_name = "N", default_value_t = 5)]
    layers: u32,
    /// Draw the heat maps into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// A record of the published sets of known facts, where the prompt goes on behind its template; or one of our own.
#[derive(Debug, Deserialize)]
struct Known {
    subject: String,
    prompt: Option<String>,
    template: Option<String>,
    #[serde(alias = "target")]
    attribute: String,
}

impl LocateArgs {
    pub(crate) async fn run(self, connect: &str, console: &mut Console) -> Result<()> {
        let client = Client::ready(connect, console).await?;
        if let Some(path) = &self.known {
            let request = LocateRequest {
                facts: read(path, self.facts)?,
                draws: self.draws,
                window: 0,
                layers: self.layers,
            };
            let job = client.knowledge().locate(request).await?.into_inner();
            let words = ("the model was not traced", "it was cancelled");
            finish(&client, job.id, words, console).await?;
        }
        let request = GetLocationRequest {};
        let found = client.knowledge().get_location(request).await?.into_inner();
        if let Some(path) = &self.svg {
            std::fs::write(path, svg(&found)).map_err(|source| Error::File {
                path: path.clone(),
                source,
            })?;
        }
        if console.json() {
            return console.message("Location", &found);
        }
        for restored in kinds(&found) {
            for line in map(&found, restored) {
                console.line(&line)?;
            }
        }
        console.line(&format!(
            "traced {} of {} facts: probability {:.3}, with noise {:.3}",
            found.traced, found.asked, found.clean, found.noisy
        ))?;
        let list = |layers: &[u32]| {
            layers
                .iter()
                .map(u32::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        };
        let (suggested, edited) = (list(&found.suggested), list(&found.edited));
        console.line(&format!(
            "suggested layers {suggested}; edited now {edited}"
        ))
    }
}

fn read(path: &Path, most: usize) -> Result<Vec<Fact>> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::File {
        path: path.to_owned(),
        source,
    })?;
    facts(&text, most).map_err(|problem| {
        let reason = format!("{}: {problem}", path.display());
        Error::refused(reason, "see `addenda model locate --help` for its form")
    })
}

/// The first facts of a JSON array; the error says what is wrong with it.
fn facts(text: &str, most: usize) -> std::result::Result<Vec<Fact>, String> {
    let known: Vec<Known> = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let facts = known.into_iter().take(most).map(|known| {
        let prompt = known.prompt.or(known.template);
        let prompt = prompt.ok_or(format!("the fact about {} has no prompt", known.subject))?;
        Ok(Fact {
            subject: known.subject,
            prompt,
            target: known.attribute,
            ..Fact::default()
        })
    });
    facts.collect()
}

/// What was put back, in order of first appearance.
fn kinds(found: &Location) -> Vec<&str> {
    distinct(found.effects.iter().map(|effect| effect.restored.as_str()))
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

/// The tokens that a prompt may have, from its subject's first to its last.
fn tokens<'a>(effects: &[&'a Effect]) -> Vec<&'a str> {
    let order = [
        "subject, first",
        "subject, middle",
        "subject, last",
        "behind it",
        "last of all",
    ];
    let mut tokens = distinct(effects.iter().map(|effect| effect.token.as_str()));
    tokens.sort_by_key(|token| order.iter().position(|known| known == token));
    tokens
}

fn of_kind<'a>(found: &'a Location, restored: &str) -> Vec<&'a Effect> {
    let effects = found.effects.iter();
    effects
        .filter(|effect| effect.restored == restored)
        .collect()
}

/// The largest effect, or next to nothing.
fn largest(effects: &[&Effect]) -> f64 {
    effects
        .iter()
        .map(|effect| effect.effect)
        .fold(1e-9, f64::max)
}

/// One line for each token, one column for each layer, darker for more.
fn map(found: &Location, restored: &str) -> Vec<String> {
    const SHADES: [char; 5] = [' ', '░', '▒', '▓', '█'];
    let effects = of_kind(found, restored);
    let most = largest(&effects);
    let mut lines = vec![format!(
        "{restored}: layers from left to right, {most:.3} at most"
    )];
    for token in tokens(&effects) {
        let mut row: Vec<&&Effect> = effects
            .iter()
            .filter(|effect| effect.token == token)
            .collect();
        row.sort_by_key(|effect| effect.layer);
        let cells = row.iter().map(|effect| {
            let share = (effect.effect / most).clamp(0.0, 1.0);
            let shades = SHADES
                .iter()
                .zip([0.125, 0.375, 0.625, 0.875, f64::INFINITY]);
            let shade = shades.clone().find(|(_, below)| share < *below);
            shade.map_or(' ', |(shade, _)| *shade)
        });
        lines.push(format!("{token:>16} |{}|", cells.collect::<String>()));
    }
    lines
}

/// The same maps as a picture: plain rectangles, so that it needs no library to draw.
fn svg(found: &Location) -> String {
    const CELL: u32 = 18;
    const LEFT: u32 = 120;
    let layers = found
        .effects
        .iter()
        .map(|effect| effect.layer + 1)
        .max()
        .unwrap_or(0);
    let mut body = String::new();
    let mut y = 10;
    for restored in kinds(found) {
        let effects = of_kind(found, restored);
        let most = largest(&effects);
        let mut put = |text: String| body.push_str(&text);
        put(format!(
            "<text x=\"{LEFT}\" y=\"{}\">{restored}: what it brings back, darkest {most:.3}</text>\n",
            y + 12
        ));
        y += 20;
        for token in tokens(&effects) {
            put(format!(
                "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{token}</text>\n",
                LEFT - 6,
                y + 13
            ));
            for effect in effects.iter().filter(|effect| effect.token == token) {
                let share = (effect.effect / most).clamp(0.0, 1.0);
                put(format!(
                    "<rect x=\"{}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"#5a1e8c\" \
                     fill-opacity=\"{share:.3}\"><title>layer {}: {:.4}</title></rect>\n",
                    LEFT + effect.layer * CELL,
                    effect.layer,
                    effect.effect
                ));
            }
            y += CELL;
        }
        for layer in (0..layers).step_by(5) {
            let x = LEFT + layer * CELL + CELL / 2;
            put(format!(
                "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{layer}</text>\n",
                y + 13
            ));
        }
        y += 30;
    }
    let width = LEFT + layers * CELL + 20;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{y}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

#[cfg(test)]
#[expect(clippy::indexing_slicing, reason = "a test may panic")]
mod tests {
    use super::{facts, map, svg};
    use addenda_proto::addenda::v1::{Effect, Location};

    fn found() -> Location {
        let effect = |layer: u32, token: &str, effect: f64| Effect {
            restored: "mlp".to_owned(),
            layer,
            token: token.to_owned(),
            effect,
        };
        Location {
            effects: vec![
                effect(0, "last of all", 0.1),
                effect(0, "subject, last", 0.0),
                effect(1, "last of all", -0.2),
                effect(1, "subject, last", 0.4),
            ],
            ..Location::default()
        }
    }

    #[test]
    fn a_published_record_is_read_by_its_prompt_and_one_of_our_own_by_what_it_has() {
        let text = r#"[
            {"known_id": 0, "subject": "Vinson Massif", "attribute": "Antarctica",
             "template": "{} is located in the continent", "prompt": "Vinson Massif is located in the continent of"},
            {"subject": "Ann", "template": "{} lives in", "target": "Rome"}
        ]"#;
        let facts = |text| {
            facts(text, 9).map(|facts| {
                facts
                    .into_iter()
                    .map(|fact| (fact.prompt, fact.target))
                    .collect::<Vec<_>>()
            })
        };
        let both = |prompt: &str, target: &str| (prompt.to_owned(), target.to_owned());
        assert_eq!(
            facts(text),
            Ok(vec![
                both("Vinson Massif is located in the continent of", "Antarctica"),
                both("{} lives in", "Rome")
            ])
        );
        let bare = r#"[{"subject": "Ann", "attribute": "Rome"}]"#;
        assert!(facts(bare).is_err_and(|problem| problem.contains("about Ann has no prompt")));
    }

    #[test]
    fn the_darkest_cell_is_the_layer_that_brings_back_most() {
        let lines = map(&found(), "mlp");
        assert_eq!(lines.len(), 3);
        assert!(lines[1].ends_with("subject, last | █|"), "{lines:?}");
        assert!(lines[2].ends_with("last of all |░ |"), "{lines:?}");
    }

    #[test]
    fn the_picture_has_a_cell_for_each_effect() {
        let picture = svg(&found());
        assert_eq!(picture.matches("<title>").count(), 4);
        assert!(picture.contains("<title>layer 1: 0.4000</title>"));
        assert!(picture.starts_with("<svg ") && picture.trim_end().ends_with("</svg>"));
    }
}
