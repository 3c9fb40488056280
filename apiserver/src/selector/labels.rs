//! `a=b,c in (d,e),!f,g>3`: the grammar of `k8s.io/apimachinery/pkg/labels`.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a parser answers every token it did not expect alike"
)]

use std::collections::BTreeSet;
use std::fmt::{self, Display};

use serde_json::Value;

use super::SelectorError;

/// What a requirement asks of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `key=value`
    Equals,
    /// `key!=value`; true when the key is absent
    NotEquals,
    /// `key in (a,b)`
    In,
    /// `key notin (a,b)`; true when the key is absent
    NotIn,
    /// `key`
    Exists,
    /// `!key`
    DoesNotExist,
    /// `key>1`
    GreaterThan,
    /// `key<1`
    LessThan,
}

/// One term of a selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// The operator.
    pub operator: Operator,
    /// Its operands.
    pub values: BTreeSet<String>,
}

/// A conjunction of requirements. The empty selector matches everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    /// The terms.
    pub requirements: Vec<Requirement>,
}

impl LabelSelector {
    /// Parses the query form.
    pub fn parse(text: &str) -> Result<LabelSelector, SelectorError> {
        let tokens = lex(text);
        let mut parser = Parser {
            tokens: &tokens,
            at: 0,
        };
        let requirements = parser.selector()?;
        Ok(LabelSelector { requirements })
    }

    /// The selector of a `metav1.LabelSelector` object (`matchLabels`, `matchExpressions`). Null selects nothing,
    /// so it is `None`.
    pub fn from_object(selector: &Value) -> Option<LabelSelector> {
        let selector = selector.as_object()?;
        let mut requirements = Vec::new();
        if let Some(labels) = selector.get("matchLabels").and_then(Value::as_object) {
            for (key, value) in labels {
                requirements.push(Requirement {
                    key: key.clone(),
                    operator: Operator::Equals,
                    values: value.as_str().map(str::to_owned).into_iter().collect(),
                });
            }
        }
        for expression in selector
            .get("matchExpressions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            requirements.push(Requirement {
                key: expression["key"].as_str()?.to_owned(),
                operator: match expression["operator"].as_str()? {
                    "In" => Operator::In,
                    "NotIn" => Operator::NotIn,
                    "Exists" => Operator::Exists,
                    "DoesNotExist" => Operator::DoesNotExist,
                    _ => return None,
                },
                values: expression["values"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|v| v.as_str().map(str::to_owned))
                    .collect(),
            });
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Some(LabelSelector { requirements })
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether these labels (an object's `metadata.labels`) are selected.
    pub fn matches(&self, labels: Option<&Value>) -> bool {
        self.requirements.iter().all(|r| r.matches(labels))
    }
}

impl Requirement {
    fn matches(&self, labels: Option<&Value>) -> bool {
        let value = labels
            .and_then(|l| l.get(&self.key))
            .and_then(Value::as_str);
        let compare = |test: fn(&i64, &i64) -> bool| {
            let wanted = self.values.first().and_then(|v| v.parse().ok());
            matches!((value.and_then(|v| v.parse().ok()), wanted), (Some(v), Some(w)) if test(&v, &w))
        };
        match self.operator {
            Operator::Equals | Operator::In => value.is_some_and(|v| self.values.contains(v)),
            Operator::NotEquals | Operator::NotIn => value.is_none_or(|v| !self.values.contains(v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan => compare(i64::gt),
            Operator::LessThan => compare(i64::lt),
        }
    }
}

/// The canonical form, as printed in tables.
impl Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let values = r
                .values
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(",");
            match r.operator {
                Operator::Equals => write!(f, "{}={values}", r.key)?,
                Operator::NotEquals => write!(f, "{}!={values}", r.key)?,
                Operator::In => write!(f, "{} in ({values})", r.key)?,
                Operator::NotIn => write!(f, "{} notin ({values})", r.key)?,
                Operator::Exists => f.write_str(&r.key)?,
                Operator::DoesNotExist => write!(f, "!{}", r.key)?,
                Operator::GreaterThan => write!(f, "{}>{values}", r.key)?,
                Operator::LessThan => write!(f, "{}<{values}", r.key)?,
            }
        }
        Ok(())
    }
}

/// A word or one of `( ) , ! = == != > <`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    Sign(&'static str),
    End,
}

impl Token {
    fn text(&self) -> &str {
        match self {
            Token::Word(word) => word,
            Token::Sign(sign) => sign,
            Token::End => "",
        }
    }
}

fn lex(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        if rest.is_empty() {
            tokens.push(Token::End);
            return tokens;
        }
        let sign = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"]
            .into_iter()
            .find(|s| rest.starts_with(s));
        if let Some(sign) = sign {
            tokens.push(Token::Sign(sign));
            rest = &rest[sign.len()..];
            continue;
        }
        let end = rest
            .find(['=', '!', '(', ')', ',', '>', '<', ' ', '\t', '\r', '\n'])
            .unwrap_or(rest.len());
        tokens.push(Token::Word(rest[..end].to_owned()));
        rest = &rest[end..];
    }
}

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> &Token {
        self.tokens.get(self.at).unwrap_or(&Token::End)
    }

    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn selector(&mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::Word(_) | Token::Sign("!") => {
                    requirements.push(self.requirement()?);
                    match self.take() {
                        Token::End => break,
                        Token::Sign(",") => match self.peek() {
                            Token::Word(_) | Token::Sign("!") => {}
                            other => return Err(found(other, "identifier after ','")),
                        },
                        other => return Err(found(&other, "',' or 'end of string'")),
                    }
                }
                Token::End => break,
                other @ Token::Sign(_) => {
                    return Err(found(other, "!, identifier, or 'end of string'"));
                }
            }
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(requirements)
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let mut operator = None;
        if *self.peek() == Token::Sign("!") {
            self.take();
            operator = Some(Operator::DoesNotExist);
        }
        let key = match self.take() {
            Token::Word(key) => key,
            other => return Err(found(&other, "identifier")),
        };
        check_key(&key)?;
        if operator.is_none() && matches!(self.peek(), Token::End | Token::Sign(",")) {
            operator = Some(Operator::Exists);
        }
        if let Some(operator) = operator {
            return Ok(Requirement {
                key,
                operator,
                values: BTreeSet::new(),
            });
        }
        let operator = match self.take() {
            Token::Word(w) if w == "in" => Operator::In,
            Token::Word(w) if w == "notin" => Operator::NotIn,
            Token::Sign("=" | "==") => Operator::Equals,
            Token::Sign("!=") => Operator::NotEquals,
            Token::Sign(">") => Operator::GreaterThan,
            Token::Sign("<") => Operator::LessThan,
            other => {
                return Err(found(&other, "in, notin, =, ==, !=, gt, lt").clone());
            }
        };
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => BTreeSet::from([self.value()?]),
        };
        if matches!(operator, Operator::GreaterThan | Operator::LessThan) {
            for value in &values {
                if value.parse::<i64>().is_err() {
                    return Err(SelectorError(format!(
                        "values[0]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                    )));
                }
            }
        } else {
            for value in &values {
                check_value(&key, value)?;
            }
        }
        Ok(Requirement {
            key,
            operator,
            values,
        })
    }

    /// The value of `=`; it may be missing at the end or before a comma.
    fn value(&mut self) -> Result<String, SelectorError> {
        match self.peek() {
            Token::End | Token::Sign(",") => Ok(String::new()),
            Token::Word(_) => Ok(self.take().text().to_owned()),
            other @ Token::Sign(_) => Err(found(other, "identifier")),
        }
    }

    fn values(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        let open = self.take();
        if open != Token::Sign("(") {
            return Err(found(&open, "'('"));
        }
        let mut values = BTreeSet::new();
        loop {
            match self.peek() {
                Token::Word(_) => {
                    values.insert(self.take().text().to_owned());
                    match self.take() {
                        Token::Sign(")") => return Ok(values),
                        Token::Sign(",") if matches!(self.peek(), Token::Sign(")")) => {
                            values.insert(String::new());
                        }
                        Token::Sign(",") => {}
                        other => return Err(found(&other, "',', or ')'")),
                    }
                }
                Token::Sign(",") => {
                    self.take();
                    values.insert(String::new());
                }
                Token::Sign(")") => {
                    self.take();
                    if values.is_empty() {
                        values.insert(String::new());
                    }
                    return Ok(values);
                }
                other => return Err(found(other, "',', ')' or identifier")),
            }
        }
    }
}

fn found(token: &Token, expected: &str) -> SelectorError {
    SelectorError(format!("found '{}', expected: {expected}", token.text()))
}

fn check_key(key: &str) -> Result<(), SelectorError> {
    match crate::names::qualified_name(key).into_iter().next() {
        None => Ok(()),
        Some(why) => Err(SelectorError(format!("key: Invalid value: {key:?}: {why}"))),
    }
}

fn check_value(key: &str, value: &str) -> Result<(), SelectorError> {
    match crate::names::label_value(value).into_iter().next() {
        None => Ok(()),
        Some(why) => Err(SelectorError(format!(
            "values[0][{key}]: Invalid value: {value:?}: {why}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn matching() {
        let labels = json!({"a": "b", "n": "5", "x.io/t": ""});
        for (text, expected) in [
            ("", true),
            ("a=b", true),
            ("a==b", true),
            ("a!=b", false),
            ("zz!=b", true),
            ("a in (c, b)", true),
            ("a in (c)", false),
            ("a notin (c,d)", true),
            ("zz notin (c)", true),
            ("a", true),
            ("!a", false),
            ("!zz", true),
            ("n>3", true),
            ("n<3", false),
            ("a>3", false),
            ("x.io/t=", true),
            ("a=b,n=5", true),
            ("a=b,n=6", false),
            ("a = b , n notin ( 6 )", true),
        ] {
            assert_eq!(
                LabelSelector::parse(text).unwrap().matches(Some(&labels)),
                expected,
                "{text}"
            );
        }
        assert!(!LabelSelector::parse("a=b").unwrap().matches(None));
    }

    #[test]
    fn canonical_text() {
        for text in [
            "a=b",
            "a!=b",
            "c in (d,e)",
            "!a",
            "a",
            "a>1",
            "a=b,c notin (d)",
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().to_string(), text);
        }
        let object = json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "In", "values": ["e", "d"]}]});
        assert_eq!(
            LabelSelector::from_object(&object).unwrap().to_string(),
            "a=b,c in (d,e)"
        );
    }

    #[test]
    fn errors() {
        for (text, message) in [
            (
                "==x",
                "found '==', expected: !, identifier, or 'end of string'",
            ),
            ("a,", "found '', expected: identifier after ','"),
            ("a in b", "found 'b', expected: '('"),
            ("a b", "found 'b', expected: in, notin, =, ==, !=, gt, lt"),
        ] {
            assert_eq!(
                LabelSelector::parse(text),
                Err(SelectorError(message.to_owned()))
            );
        }
    }

    proptest! {
        #[test]
        fn parse_never_panics_and_prints_what_it_parsed(text in "[a-c!=<>(), 0-9]{0,20}") {
            if let Ok(selector) = LabelSelector::parse(&text) {
                let again = LabelSelector::parse(&selector.to_string());
                prop_assert_eq!(again.as_ref().map(ToString::to_string), Ok(selector.to_string()));
            }
        }
    }
}
