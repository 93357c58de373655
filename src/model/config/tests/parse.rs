//! What configuration may say, and what is said of the rest. The admission policy that the API server
//! runs is held to the same table.

use serde::Deserialize;
use serde_json::Value;

use crate::model::config::Config;

const CASES: &str = include_str!("cases.json");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    parameters: Value,
    means: Option<String>,
    refused: Option<String>,
}

#[test]
fn every_case_of_the_table_is_read_or_refused_as_it_says() {
    let cases: Vec<Case> = serde_json::from_str(CASES).unwrap();
    for Case { parameters, means, refused } in cases {
        let read = Config::parse(&parameters);
        let read = read.map(|config| format!("{config:?}")).map_err(|error| error.to_string());
        let expected = match (means, refused) {
            (Some(means), None) => Ok(means),
            (None, Some(refused)) => Err(refused),
            _ => panic!("{parameters} has one meaning, or one reason why not"),
        };
        assert_eq!(read, expected, "{parameters}");
    }
}
