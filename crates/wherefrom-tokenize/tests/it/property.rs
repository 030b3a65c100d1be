//! Any text survives.

use proptest::prelude::*;

use crate::{Bench, config, tokenizer};

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decoded_ids_equal_the_text(texts in prop::collection::vec(any::<String>().prop_filter("empty", |text| !text.is_empty()), 1..6)) {
        let lines: String = texts.iter().map(|text| format!("{}\n", serde_json::json!({ "text": text }))).collect();
        let rows = Bench::new().examples(&config(4096), &lines);
        prop_assert_eq!(rows.len(), texts.len());
        for (row, text) in rows.iter().zip(&texts) {
            let inner = &row.input_ids[1..row.input_ids.len() - 1];
            prop_assert_eq!(&tokenizer().decode(inner, false).unwrap(), text);
            prop_assert_eq!(&row.text, text);
            prop_assert!(!row.target_mask[0] && row.target_mask[1..].iter().all(|&target| target));
        }
    }

    #[test]
    fn a_window_holds_the_completion_and_no_more_than_max_tokens(prompt in ".{0,40}", completion in ".{1,10}", max in 42_usize..60) {
        let line = serde_json::json!({ "prompt": prompt, "completion": completion }).to_string();
        let row = Bench::new().examples(&config(max), &line).remove(0);
        let measured: Vec<u32> = row.input_ids.iter().zip(&row.target_mask).filter_map(|(&id, &target)| target.then_some(id)).collect();
        prop_assert!(row.input_ids.len() <= max && row.input_ids[0] == 1);
        // A token on both sides of the boundary is measured whole.
        prop_assert!(tokenizer().decode(&measured, false).unwrap().ends_with(&completion));
    }
}
