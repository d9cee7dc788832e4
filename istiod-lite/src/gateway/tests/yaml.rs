//! Values as YAML that a person compares: keys sorted, strings quoted where they must be.

use serde_json::Value;

pub(super) fn documents(values: &[Value]) -> String {
    let mut text = String::new();
    for value in values {
        text.push_str("---\n");
        write(value, 0, &mut text);
    }
    text
}

fn write(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let mut keys: Vec<&String> = fields.keys().collect();
            keys.sort();
            for key in keys {
                text.push_str(&format!("{indent}{}:", scalar(&Value::String(key.clone()))));
                below(&fields[key], depth + 1, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut inner = String::new();
                write(item, depth + 1, &mut inner);
                text.push_str(&format!("{indent}- {}", inner.trim_start()));
            }
        }
        other => text.push_str(&format!("{indent}{}\n", scalar(other))),
    }
}

fn below(value: &Value, depth: usize, text: &mut String) {
    let nested = match value {
        Value::Object(fields) => !fields.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    };
    if nested {
        text.push('\n');
        write(value, depth, text);
    } else {
        text.push_str(&format!(" {}\n", scalar(value)));
    }
}

fn scalar(value: &Value) -> String {
    let Value::String(string) = value else { return value.to_string() };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./()".contains(c);
    let word = string.chars().all(plain) && string.starts_with(|c: char| c.is_ascii_alphabetic());
    let reserved = ["true", "false", "True", "False", "null", "yes", "no", "on", "off"].contains(&string.as_str());
    if word && !reserved { string.clone() } else { value.to_string() }
}
