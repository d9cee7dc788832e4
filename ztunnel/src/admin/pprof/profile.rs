//! A CPU profile as pprof's `profile.proto` has it: strings in a table, functions and places by number.

use std::collections::HashMap;

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    pub(super) sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    pub(super) string_table: Vec<String>,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    pub(super) period: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    text: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

impl Profile {
    /// What a sampler saw at this frequency.
    pub(super) fn of(report: &pprof::Report, frequency: i32) -> Self {
        let mut strings = Strings::default();
        // The table begins with the empty string.
        strings.number(String::new());
        let (samples, count) = (strings.number("samples".into()), strings.number("count".into()));
        let (cpu, nanoseconds) = (strings.number("cpu".into()), strings.number("nanoseconds".into()));
        let thread = strings.number("thread".into());
        let period = 1_000_000_000 / i64::from(frequency.max(1));
        let cpu_time = ValueType { kind: cpu, unit: nanoseconds };
        let mut profile = Self {
            sample_type: vec![ValueType { kind: samples, unit: count }, cpu_time.clone()],
            duration_nanos: i64::try_from(report.timing.duration.as_nanos()).unwrap_or(i64::MAX),
            period_type: Some(cpu_time),
            period,
            ..Self::default()
        };
        let mut known: HashMap<(String, u32), u64> = HashMap::new();
        for (stack, seen) in &report.data {
            let mut sample = Sample::default();
            for symbol in stack.frames.iter().flatten() {
                let place = (symbol.name(), symbol.lineno());
                let id = *known.entry(place).or_insert_with_key(|(name, line)| {
                    let id = profile.location.len() as u64 + 1;
                    profile.function.push(Function {
                        id,
                        name: strings.number(name.clone()),
                        system_name: strings.number(symbol.sys_name().into_owned()),
                        filename: strings.number(symbol.filename().into_owned()),
                    });
                    profile.location.push(Location { id, line: vec![Line { function_id: id, line: (*line).into() }] });
                    id
                });
                sample.location_id.push(id);
            }
            let seen = i64::try_from(*seen).unwrap_or_default();
            sample.value = vec![seen, seen.saturating_mul(period)];
            sample.label = vec![Label { key: thread, text: strings.number(stack.thread_name_or_id()) }];
            profile.sample.push(sample);
        }
        profile.string_table = strings.table;
        profile
    }
}

#[derive(Default)]
struct Strings {
    table: Vec<String>,
    numbers: HashMap<String, i64>,
}

impl Strings {
    fn number(&mut self, text: String) -> i64 {
        if let Some(number) = self.numbers.get(&text) {
            return *number;
        }
        let number = self.table.len() as i64;
        self.table.push(text.clone());
        self.numbers.insert(text, number);
        number
    }
}
