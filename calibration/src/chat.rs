//! Conversations as text: a model's chat template in the environment that transformers gives it.
//!
//! Templates are Jinja with a few functions beside it (`raise_exception`, `strftime_now`), Python's string methods, and `tojson` that prints
//! like Python's `json.dumps`. Tools and documents are not passed. Templates come from the checkpoint, so what they may compute is limited.

use std::sync::LazyLock;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, context};
use serde::{Deserialize, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// What a template may take: one for each instruction and for each 64 bytes that it makes, so at most 256 MB and about a second. A long
/// conversation needs a hundredth of it.
const FUEL: u64 = 4_000_000;

/// Special tokens as text.
#[derive(Clone, Debug, Default)]
pub(crate) struct SpecialTokens {
    pub(crate) begin: String,
    pub(crate) end: String,
    pub(crate) unknown: Option<String>,
    pub(crate) padding: Option<String>,
}

/// Renders `messages`, a list of objects with `role` and `content`; with `answer`, up to where the model's answer begins.
pub(crate) fn render(
    template: &str,
    messages: &serde_json::Value,
    special: &SpecialTokens,
    answer: bool,
) -> Result<String, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: &str| strftime(format));
    environment.add_filter("tojson", to_json);
    let messages = Value::deserialize(messages)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    environment.render_str(
        &without_generation_marks(template),
        context! {
            messages => messages,
            bos_token => special.begin.as_str(),
            eos_token => special.end.as_str(),
            unk_token => special.unknown.as_ref().map_or(Value::UNDEFINED, Value::from),
            pad_token => special.padding.as_ref().map_or(Value::UNDEFINED, Value::from),
            tools => (),
            documents => (),
            add_generation_prompt => answer,
        },
    )
}

/// Templates may mark what the assistant says with `{% generation %}`, which is no Jinja; here it encloses what is always printed.
fn without_generation_marks(template: &str) -> String {
    static MARKS: LazyLock<[(String, String); 18]> = LazyLock::new(|| {
        let mut marks = std::array::from_fn(|_| (String::new(), String::new()));
        let mut index = 0;
        for (word, replacement) in [("generation", "if true"), ("endgeneration", "endif")] {
            for open in ["{%", "{%-", "{%+"] {
                for close in ["%}", "-%}", "+%}"] {
                    marks[index] =
                        (format!("{open} {word} {close}"), format!("{open} {replacement} {close}"));
                    index += 1;
                }
            }
        }
        marks
    });
    let replace = |text: String, (mark, replacement): &(String, String)| text.replace(mark, replacement);
    if template.contains("generation") {
        MARKS.iter().fold(template.to_owned(), replace)
    } else {
        template.to_owned()
    }
}

/// Templates print today's date; a fixed one, 1 January 2026, keeps the windows the same tomorrow.
fn strftime(format: &str) -> String {
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let directive = match characters.next() {
            Some('-') => characters.next().map(|directive| (true, directive)),
            other => other.map(|directive| (false, directive)),
        };
        out.push_str(match directive {
            Some((false, 'd' | 'm')) => "01",
            Some((true, 'd' | 'm')) => "1",
            Some((_, 'Y')) => "2026",
            Some((_, 'y')) => "26",
            Some((_, 'B')) => "January",
            Some((_, 'b')) => "Jan",
            Some((_, 'A')) => "Thursday",
            Some((_, 'a')) => "Thu",
            Some((_, 'j')) => "001",
            Some((_, 'I')) => "12",
            Some((_, 'H' | 'M' | 'S')) => "00",
            Some((_, 'p')) => "AM",
            Some((_, '%')) => "%",
            _ => "",
        });
    }
    out
}

/// `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    // transformers takes these too; what they change is no part of any template's meaning here.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        None => value.serialize(&mut Serializer::with_formatter(&mut out, PythonStyle)),
        Some(width) => {
            let indent = vec![b' '; width.min(16)];
            value.serialize(&mut Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(&indent)))
        }
    };
    let failed = |problem: String| Error::new(ErrorKind::BadSerialization, problem);
    written.map_err(|e| failed(e.to_string()))?;
    String::from_utf8(out).map_err(|e| failed(e.to_string()))
}

/// A space after each comma and colon.
struct PythonStyle;

impl Formatter for PythonStyle {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_render_as_in_transformers() {
        let goldens = include_str!("../tests/data/chat.json");
        let goldens: Vec<serde_json::Value> = serde_json::from_str(goldens).unwrap();
        let special =
            SpecialTokens { begin: "<s>".to_owned(), end: "</s>".to_owned(), ..SpecialTokens::default() };
        for golden in goldens {
            let found =
                render(golden["template"].as_str().unwrap(), &golden["messages"], &special, false).unwrap();
            assert_eq!(found, golden["expected"].as_str().unwrap(), "{}", golden["name"]);
        }
    }

    #[test]
    fn a_template_may_refuse_and_may_not_run_forever() {
        let none = SpecialTokens::default();
        let messages = serde_json::json!([{"role": "tool", "content": ""}]);
        let refusing = "{{ raise_exception('no role ' + messages[0].role) }}";
        let error = render(refusing, &messages, &none, false).unwrap_err().to_string();
        assert!(error.contains("no role tool"), "{error}");
        let endless =
            "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = b %}{% endfor %}{% endfor %}";
        assert!(render(endless, &messages, &none, false).is_err());
        assert!(render("{% for %}", &messages, &none, false).is_err());
    }

    #[test]
    fn dates_are_always_the_same_day() {
        assert_eq!(strftime("%d %b %Y"), "01 Jan 2026");
        assert_eq!(strftime("%A, %B %-d, %Y %H:%M 100%%"), "Thursday, January 1, 2026 00:00 100%");
    }
}
