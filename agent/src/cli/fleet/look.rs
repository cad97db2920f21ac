//! `portcullis status --device` and `portcullis events --device`.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Fleet, Row, code, wait_for};
use crate::{
    api::client::{Ask, AskError},
    cli::{
        BAD_INPUT, NO, OrExit, Outcome, output,
        status::{Page, show},
    },
    event::human::{Named, Plain},
};

/// A device's answer in a line.
#[derive(Serialize)]
struct Told<'a> {
    device: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Deserialize)]
struct Health {
    health: String,
}

/// Shows how the devices are.
pub fn status(fleet: &Fleet, as_json: bool) -> Outcome {
    let bar = output::progress(fleet.devices.len() as u64, "asking");
    let asking = fleet.each(fleet.devices.iter(), &bar, |client, device| async move {
        let answer = client.ask_text(&device, &Ask::Status).await;
        let answer = answer.and_then(|text| {
            let Health { health } = serde_json::from_str(&text).map_err(broken)?;
            Ok((text, health))
        });
        (device, answer)
    });
    let answers = wait_for(asking)?;
    bar.finish_and_clear();
    let (mut text, mut rows, mut is_failed) = (String::new(), Vec::new(), false);
    for (device, answer) in &answers {
        rows.push(match answer {
            Ok((_, health)) => {
                is_failed |= health == "failed";
                Row::new(&device.shown, "done")
            }
            Err(error) => Row::failed(device, error),
        });
        let device = device.shown.as_str();
        if as_json {
            let raw = answer.as_ref().ok().and_then(|(text, _)| serde_json::from_str(text).ok());
            let error = answer.as_ref().err().map(ToString::to_string);
            let told = Told { device, status: raw, event: None, error };
            text.push_str(&(serde_json::to_string(&told).or_exit(BAD_INPUT)? + "\n"));
        }
    }
    if !as_json {
        text = match &answers[..] {
            [(_, Ok((text, _)))] => {
                serde_json::from_str::<Page>(text).map(|page| show(&page)).map_err(broken)?
            }
            _ => table(&answers),
        };
    }
    output::print(&text)?;
    Ok(if is_failed { ExitCode::from(NO) } else { code(&rows) })
}

fn broken(error: serde_json::Error) -> AskError {
    AskError::Broken(error.to_string())
}

type Answered = (crate::api::client::Device, Result<(String, String), AskError>);

fn table(answers: &[Answered]) -> String {
    let mut table = output::table(&["device", "health", "mode", "policy", "agent", "why"]);
    for (device, answer) in answers {
        let page = answer.as_ref().map_err(ToString::to_string).and_then(|(text, _)| {
            serde_json::from_str::<Page>(text).map_err(|error| error.to_string())
        });
        let cells = match page {
            Ok(page) => {
                let why = page.why();
                [page.health, page.mode, Named(&page.policy).to_string(), page.version, why]
            }
            Err(why) => ["?", "", "", "", &why].map(str::to_owned),
        };
        let cells = cells.map(|cell| Plain(&cell).to_string());
        table.add_row([device.shown.clone()].into_iter().chain(cells));
    }
    format!("{}\n", table.trim_fmt())
}

/// Shows what happens on the devices.
pub fn events(fleet: &Fleet, follow: bool, as_json: bool) -> Outcome {
    let several = fleet.devices.len() > 1;
    // Everybody is followed at once, however many are asked otherwise.
    let fleet = Fleet {
        client: fleet.client.clone(),
        devices: fleet.devices.clone(),
        parallel: if follow { fleet.devices.len() } else { fleet.parallel },
    };
    let bar = indicatif::ProgressBar::hidden();
    let asking = fleet.each(fleet.devices.iter(), &bar, |client, device| async move {
        let ask = Ask::Events { follow, json: as_json };
        let shown = device.shown.clone();
        let done = client.lines(&device, &ask, |line| {
            let text = if as_json {
                let event = Some(serde_json::from_str(line).map_err(broken)?);
                let told = Told { device: &shown, status: None, event, error: None };
                serde_json::to_string(&told).map_err(broken)?
            } else if several {
                format!("{shown}: {}", Plain(line))
            } else {
                Plain(line).to_string()
            };
            let printed = output::print(&format!("{text}\n"));
            printed.map_err(|failure| AskError::Broken(failure.error.to_string()))
        });
        match done.await {
            Ok(()) => Row::new(&device.shown, "done"),
            Err(error) => {
                output::error(&format!("{shown}: {error}"));
                Row::failed(&device, &error)
            }
        }
    });
    let rows = wait_for(asking)?;
    Ok(code(&rows))
}
