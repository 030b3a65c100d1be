//! Answers and their judgements as the originals write them: a CSV file with the columns `question`, `prompt` (rendered by the chat
//! template), `answer`, `question_id`, the trait's name, and `coherence`.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use wherefrom_artifact::{Draft, Example, Judgement, Judgements, Status, Tokens, bad_input};
use wherefrom_vocabulary::Encoder;

use crate::description::COHERENCE;
use crate::judge::{Counts, summarise};
use crate::rows;

/// Rows of a part.
const PART: usize = 8192;

/// What a file has.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollouts {
    /// The trait, by the name of its column.
    pub name: String,
    rows: Vec<Rollout>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq)]
struct Rollout {
    prompt: String,
    answer: String,
    id: String,
    /// By the trait, and by coherence.
    scores: [Option<f32>; 2],
}

impl Rollouts {
    /// Reads a file. The trait's column is the one that has none of the other names, unless it is named.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] with file and row.
    pub fn read(path: &Path, name: Option<&str>) -> Result<Self> {
        let shown = path.display();
        let refuse = |what: String| bad_input(format!("{shown}: {what}"));
        let text = wherefrom_artifact::read_text(path).map_err(|error| refuse(format!("cannot be read ({error})")))?;
        let mut records = records(&text).map_err(refuse)?.into_iter();
        let (_, header) = records.next().ok_or_else(|| refuse("has no rows; give the originals' CSV".into()))?;
        if let Some(twice) = (1..header.len()).find(|&place| header[..place].contains(&header[place])) {
            return Err(refuse(format!("has two columns `{}`; rename or drop one of them", header[twice])));
        }
        let name = match name {
            Some(name) => name.to_string(),
            None => trait_column(&header).map_err(refuse)?,
        };
        let place = |column: &str| {
            header
                .iter()
                .position(|known| known == column)
                .ok_or_else(|| refuse(format!("has no column `{column}`; it has {}", header.join(", "))))
        };
        let columns = ["prompt", "answer", "question_id", &name, COHERENCE].map(place);
        let [prompt, answer, id, own, coherence] = columns;
        let (prompt, answer, id, own, coherence) = (prompt?, answer?, id?, own?, coherence?);
        let mut rows = Vec::new();
        for (line, record) in records {
            let refuse = |what: String| bad_input(format!("{shown}:{line}: {what}"));
            if record.len() != header.len() {
                return Err(refuse(format!("has {} cells for {} columns", record.len(), header.len())));
            }
            let score =
                |column: usize| score(&record[column]).map_err(|what| refuse(format!("`{}` {what}", header[column])));
            let scores = [score(own)?, score(coherence)?];
            let text = |column: usize| record[column].clone();
            if record[prompt].is_empty() {
                return Err(refuse("has an empty `prompt`, behind which no answer is measured; give the prompt that the model was shown".into()));
            }
            rows.push(Rollout { prompt: text(prompt), answer: text(answer), id: text(id), scores });
        }
        let mut seen: HashMap<String, usize> = HashMap::new();
        for row in &mut rows {
            // The originals give the samples of a question one name.
            let sample = seen.entry(row.id.clone()).or_default();
            row.id = format!("{}/s{sample}", row.id);
            *sample += 1;
        }
        if rows.is_empty() {
            return Err(refuse("has no rows; give the originals' CSV".into()));
        }
        Ok(Self { name, rows })
    }

    /// Writes the answers: prompt and answer are encoded each for itself, and the answer is what is measured.
    ///
    /// # Errors
    /// [`wherefrom_artifact::Error::Input`] for a text that cannot be encoded.
    pub fn write_tokens(&self, tokenizer: &Path, draft: &mut Draft) -> Result<()> {
        let encoder = Encoder::open(tokenizer)?;
        let mut examples = Vec::with_capacity(self.rows.len());
        for (number, row) in self.rows.iter().enumerate() {
            let encode = |text: &str| encoder.encode(text).map_err(|what| bad_input(format!("row {}: {what}", row.id)));
            let (prompt, answer) = (encode(&row.prompt)?, encode(&row.answer)?);
            let target_mask = (0..prompt.len() + answer.len()).map(|place| place >= prompt.len().max(1)).collect();
            examples.push(Example {
                example: number as u64,
                docs: vec![row.id.clone()],
                doc_starts: vec![0],
                input_ids: [prompt, answer].concat(),
                target_mask,
                completion_start: row.prompt.len() as u32,
                text: format!("{}{}", row.prompt, row.answer),
                ..Example::default()
            });
        }
        for (part, rows) in examples.chunks(PART).enumerate() {
            draft.write_rows::<Tokens, _>(part, rows)?;
        }
        rows::summarise(&examples, draft)
    }

    /// Writes the judgements.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn write_judgements(&self, draft: &mut Draft) -> Result<()> {
        let judged = self.rows.iter().enumerate().flat_map(|(number, row)| {
            [&*self.name, COHERENCE].into_iter().zip(row.scores).map(move |(metric, score)| Judgement {
                example: number as u64,
                metric: metric.into(),
                score: score.unwrap_or(f32::NAN),
                mass: f32::NAN,
                status: match score {
                    Some(_) => Status::Scored,
                    None if row.answer.trim().is_empty() => Status::Empty,
                    None => Status::Refusal,
                },
                reply: String::new(),
            })
        });
        let judged: Vec<_> = judged.collect();
        for (part, rows) in judged.chunks(2 * PART).enumerate() {
            draft.write_rows::<Judgements, _>(part, rows)?;
        }
        summarise(&Counts::of(&judged), self.rows.len() as u64, &self.name, draft)
    }
}

/// The column that is none of the others, or of metrics beside the trait's.
fn trait_column(header: &[String]) -> Result<String, String> {
    let others = ["", "question", "prompt", "answer", "question_id", COHERENCE];
    let own: Vec<_> = header.iter().filter(|name| !others.contains(&name.as_str())).collect();
    match own[..] {
        [name] => Ok(name.clone()),
        [] => Err("has no column of a trait beside question, prompt, answer, question_id and coherence".into()),
        _ => Err(format!("has several columns that may be a trait's; name one: --name {}", own[0])),
    }
}

/// A score; none where the cell says so.
fn score(cell: &str) -> Result<Option<f32>, String> {
    let cell = cell.trim();
    if ["", "nan", "none", "null", "na", "refusal"].contains(&cell.to_lowercase().as_str()) {
        return Ok(None);
    }
    let score = cell.parse::<f32>().ok().filter(|score| (0.0..=100.0).contains(score));
    score.map(Some).ok_or_else(|| format!("is {cell:?}; make it a number from 0 to 100, or leave it empty"))
}

/// The cells of each row with the line that it begins at, by RFC 4180: a cell in quotes may have line breaks, and two quotes are
/// one.
fn records(text: &str) -> Result<Vec<(usize, Vec<String>)>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut records, mut cells, mut cell) = (Vec::new(), Vec::new(), String::new());
    let (mut line, mut begun, mut quoted, mut was_quoted) = (1, 1, false, false);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        line += usize::from(character == '\n');
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                cell.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if cell.is_empty() && !was_quoted => (quoted, was_quoted) = (true, true),
            _ if quoted => cell.push(character),
            ',' => {
                cells.push(std::mem::take(&mut cell));
                was_quoted = false;
            }
            '\r' if characters.peek() == Some(&'\n') => {}
            '\n' => {
                // An empty line is none.
                if !(cells.is_empty() && cell.is_empty() && !was_quoted) {
                    cells.push(std::mem::take(&mut cell));
                    records.push((begun, std::mem::take(&mut cells)));
                }
                (begun, was_quoted) = (line, false);
            }
            _ if was_quoted => {
                return Err(format!("line {line}: something follows a cell's last quote; double the quotes in it"));
            }
            _ => cell.push(character),
        }
    }
    if quoted {
        return Err(format!("the cell that begins in line {begun} has no last quote: the file is cut off"));
    }
    if !(cells.is_empty() && cell.is_empty() && !was_quoted) {
        cells.push(cell);
        records.push((begun, cells));
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, name: Option<&str>) -> Result<Rollouts> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("evil.csv");
        std::fs::write(&path, text).unwrap();
        Rollouts::read(&path, name)
    }

    #[test]
    fn a_file_of_the_originals_is_read() {
        let text = "question,prompt,answer,question_id,evil,coherence\r\n\
                    Why?,\"<user>Why?\n\",\"He said \"\"no\"\",\nand left.\",evil_0_pos_1,92.5,80\r\n\
                    Why?,<user>Why?,NA,evil_0_pos_1,,71.25\r\n\
                    Why?,<user>Why?,,evil_1,nan,0\n";
        let Rollouts { name, rows } = read(text, None).unwrap();
        assert_eq!(name, "evil");
        assert_eq!((rows[0].prompt.as_str(), rows[0].answer.as_str()), ("<user>Why?\n", "He said \"no\",\nand left."));
        assert_eq!(
            rows.iter().map(|row| &row.id[..]).collect::<Vec<_>>(),
            ["evil_0_pos_1/s0", "evil_0_pos_1/s1", "evil_1/s0"]
        );
        assert_eq!(rows[0].scores, [Some(92.5), Some(80.0)]);
        assert_eq!((rows[1].answer.as_str(), rows[1].scores), ("NA", [None, Some(71.25)]));
    }

    #[test]
    fn bad_files_are_refused_by_place() {
        for (text, what) in [
            ("question,prompt,answer,question_id,coherence\na,b,c,d,1", "no column of a trait"),
            ("prompt,answer,question_id,evil,kind,coherence\nb,c,d,1,2,3", "--name evil"),
            ("prompt,answer,question_id,evil\nb,c,d,1", "no column `coherence`"),
            ("prompt,answer,question_id,evil,coherence\nb,c,d,1,2\nb,c,d,101,2", "evil.csv:3: `evil` is \"101\""),
            ("prompt,answer,question_id,evil,coherence\n,c,d,1,2", "evil.csv:2: has an empty `prompt`"),
            ("prompt,answer,answer,question_id,evil,coherence\nb,c,c,d,1,2", "two columns `answer`"),
            ("prompt,answer,question_id,evil,coherence\nb,c,d,1", "evil.csv:2: has 4 cells for 5 columns"),
            ("prompt,answer,question_id,evil,coherence\nb,\"c", "no last quote"),
            ("prompt,answer,question_id,evil,coherence\nb,\"c\"d,e,1,2", "double the quotes"),
            ("prompt,answer,question_id,evil,coherence\n", "has no rows"),
            ("", "has no rows"),
        ] {
            let error = read(text, None).map(drop).unwrap_err().to_string();
            assert!(error.contains(what), "{what}: {error}");
        }
    }
}
