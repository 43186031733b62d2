//! A conversation to the text that a chat model was trained on.
//!
//! Owns [`ChatTemplate`]: the Jinja template that comes with a model, rendered
//! as Transformers renders it (`apply_chat_template` with `tokenize=False`):
//! blocks trimmed, the special tokens by name, `raise_exception`,
//! `strftime_now`, Python's string methods, and a `tojson` that writes JSON as
//! Python does. A template can read nothing but what it is given: it has no
//! loader and no files. It never adds a token of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, ErrorKind, context};
use serde::Serialize;

use crate::error::{Error, Result};

mod json;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// Compiles a template. `special_tokens` are the names that it may use,
    /// such as `bos_token`, with their spelling.
    ///
    /// # Errors
    /// [`Error::Template`] if the source is no valid template.
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|source| Error::Template {
                what: "does not compile",
                source,
            })?;
        Ok(Self {
            environment,
            special_tokens,
        })
    }

    /// Renders a conversation; with `add_generation_prompt` it ends where the
    /// assistant's answer begins.
    ///
    /// # Errors
    /// [`Error::Template`] if the template refuses the conversation (an unknown
    /// role, say), with the template's own words.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        let refused = |source| Error::Template {
            what: "refused this conversation",
            source,
        };
        let template = self.environment.get_template(NAME).map_err(refused)?;
        let mut values: BTreeMap<&str, Value> = self
            .special_tokens
            .iter()
            .map(|(name, spelling)| (name.as_str(), Value::from(spelling.as_str())))
            .collect();
        values.insert("messages", Value::from_serialize(messages));
        values.insert("add_generation_prompt", Value::from(add_generation_prompt));
        // Transformers passes both as None where a caller gives none.
        values.insert("tools", Value::from(()));
        values.insert("documents", Value::from(()));
        template
            .render(context! { ..Value::from_iter(values) })
            .map_err(refused)
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("special_tokens", &self.special_tokens)
            .finish_non_exhaustive()
    }
}

/// Transformers' `generation` tag only marks the assistant's part for training
/// and prints its content as it is; it becomes a condition that always holds.
fn without_generation_tags(source: &str) -> String {
    let mut text = source.to_owned();
    for (open, close) in [("{%", "%}"), ("{%-", "%}"), ("{%", "-%}"), ("{%-", "-%}")] {
        text = text
            .replace(
                &format!("{open} generation {close}"),
                &format!("{open} if true {close}"),
            )
            .replace(
                &format!("{open} endgeneration {close}"),
                &format!("{open} endif {close}"),
            );
    }
    text
}

fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the template engine passes owned arguments"
)]
fn to_json(value: Value, options: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Python's other options change nothing for what a conversation holds.
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Value> = options.get(ignored)?;
    }
    options.assert_all_used()?;
    json::python_style(&value, indent)
        .map(Value::from)
        .map_err(|source| {
            minijinja::Error::new(ErrorKind::BadSerialization, "this value has no JSON form")
                .with_source(source)
        })
}

/// The present date and time in UTC, in the directives that templates use.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the template engine passes owned arguments"
)]
fn strftime_now(format: String) -> std::result::Result<String, minijinja::Error> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    format_time(now, &format).map_err(|directive| {
        minijinja::Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now does not know the directive %{directive}"),
        )
    })
}

/// Formats seconds since 1970 (UTC); `Err` holds an unknown directive.
fn format_time(seconds: u64, format: &str) -> std::result::Result<String, char> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = [
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
        "Monday",
        "Tuesday",
        "Wednesday",
    ];
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let named = |names: &[&'static str], index: u64| {
        usize::try_from(index)
            .ok()
            .and_then(|index| names.get(index).copied())
            .unwrap_or_default()
    };
    let short = |name: &str| name.chars().take(3).collect::<String>();
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        match rest.next().unwrap_or('%') {
            'Y' => text.push_str(&format!("{year:04}")),
            'y' => text.push_str(&format!("{:02}", year % 100)),
            'm' => text.push_str(&format!("{month:02}")),
            'd' => text.push_str(&format!("{day:02}")),
            'B' => text.push_str(named(&MONTHS, month - 1)),
            'b' => text.push_str(&short(named(&MONTHS, month - 1))),
            'A' => text.push_str(named(&DAYS, days % 7)),
            'a' => text.push_str(&short(named(&DAYS, days % 7))),
            'H' => text.push_str(&format!("{hour:02}")),
            'I' => text.push_str(&format!("{:02}", (hour + 11) % 12 + 1)),
            'p' => text.push_str(if hour < 12 { "AM" } else { "PM" }),
            'M' => text.push_str(&format!("{minute:02}")),
            'S' => text.push_str(&format!("{second:02}")),
            '%' => text.push('%'),
            other => return Err(other),
        }
    }
    Ok(text)
}

/// Days since 1970-01-01 to year, month (from 1) and day of the Gregorian
/// calendar: Howard Hinnant's `civil_from_days`, for days that are not negative.
fn civil(days: u64) -> (u64, u64, u64) {
    // Counted from 1 March of the year 0, so that leap days end a year.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::{BTreeMap, ChatMessage, ChatTemplate, format_time};

    fn render(source: &str) -> crate::error::Result<String> {
        let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
        let messages = [ChatMessage {
            role: "user".to_owned(),
            content: " é<\"\n".to_owned(),
        }];
        ChatTemplate::new(source, tokens)?.render(&messages, true)
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let text = format_time(1_709_251_199, "%A %d %b %Y, %H:%M:%S %I %p %%").unwrap();
        assert_eq!(text, "Thursday 29 Feb 2024, 23:59:59 11 PM %");
        assert_eq!(format_time(0, "%Y-%m-%d").unwrap(), "1970-01-01");
        assert_eq!(format_time(0, "%Q"), Err('Q'));
    }

    #[test]
    fn a_template_refuses_a_conversation_in_its_own_words() {
        let error = render("{{ raise_exception('Roles must alternate') }}").unwrap_err();
        assert!(
            error.to_string().ends_with("Roles must alternate"),
            "{error}"
        );
    }

    #[test]
    fn a_broken_template_is_named_when_it_is_compiled() {
        let error = render("{% if %}").unwrap_err();
        assert!(error.to_string().contains("does not compile"), "{error}");
    }

    #[test]
    fn blocks_are_trimmed_and_special_tokens_have_names() {
        let text = render("{{ bos_token }}\n  {% if tools %}\nno\n  {% endif %}\nyes").unwrap();
        assert_eq!(text, "<s>\nyes");
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        let text = render("{{ messages | tojson }}").unwrap();
        assert_eq!(text, r#"[{"role": "user", "content": " é<\"\n"}]"#);
        let text = render("{{ messages[0] | tojson(indent=2) }}").unwrap();
        assert_eq!(
            text,
            "{\n  \"role\": \"user\",\n  \"content\": \" é<\\\"\\n\"\n}"
        );
    }

    #[test]
    fn python_methods_and_generation_tags_are_understood() {
        let source = "{% for m in messages %}{%- generation -%} {{ m['content'].strip() }}\
                      {%- endgeneration -%}{% break %}{% endfor %}";
        assert_eq!(render(source).unwrap(), "é<\"");
    }
}
