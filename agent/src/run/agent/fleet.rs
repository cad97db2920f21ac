//! Catalogs that a fleet's servers bring, and take away. What is kept joins the policy as what lies in the
//! folder of catalogs does: when the folders have come to rest, they are read.

use std::sync::Arc;

use super::Agent;
use crate::{
    artifact::digest,
    catalog::{
        Signed, rotate_by,
        shelf::{DISK, Shelf, Taken, TakenAway},
        versions::Versions,
    },
    control::{
        Refusal, Request, TakenAnswer,
        caller::Caller,
        server::{Answer, Asker, FoundOut, json},
    },
    event::CatalogChange,
    policy::trust::Why,
    reader::Checked,
    run::catalogs,
};

impl Agent {
    /// Has a catalog judged and kept in another thread, which sends the request again.
    pub(super) fn take_catalog(&mut self, path: String, asker: Asker) {
        let file = path.clone();
        let work = move |shelf: &Shelf, signed: &Signed<'_>, versions: &Versions| {
            shelf.take(file.as_ref(), signed, versions).map(Box::new)
        };
        self.ask_shelf(Request::TakeCatalog { path }, asker, work, FoundOut::Taken);
    }

    /// Has one taken away in the same manner.
    pub(super) fn take_catalog_away(&mut self, name: String, asker: Asker) {
        let wanted = name.clone();
        let work = move |shelf: &Shelf, signed: &Signed<'_>, _: &Versions| {
            shelf.take_away(&wanted, signed)
        };
        self.ask_shelf(Request::TakeCatalogAway { name }, asker, work, FoundOut::TakenAway);
    }

    /// One thing at a time, or two could each be the last for which there is room.
    fn ask_shelf<T: Send + 'static>(
        &mut self,
        request: Request,
        asker: Asker,
        work: impl FnOnce(&Shelf, &Signed<'_>, &Versions) -> Result<T, Why> + Send + 'static,
        found_out: fn(Result<T, Why>) -> FoundOut,
    ) {
        let refuse = |asker: Asker, code, message: &str| {
            asker.tell(Answer::Refused(Refusal { code, message: message.into() }));
        };
        if !matches!(asker.by, Some(Caller::Fleet { .. })) {
            let message =
                "only a fleet's link brings catalogs so; copy them into the folder of catalogs";
            return refuse(asker, 1, message);
        }
        let Some(commands) = self.commands.clone() else { return };
        if self.takes_catalog {
            return refuse(asker, 3, "another catalog is being looked at; try again");
        }
        self.takes_catalog = true;
        let places = self.places.clone();
        // Without anybody whom the policy trusts, nothing counts.
        let base = self.catalogs.as_ref().map(|watch| Arc::clone(watch.base()));
        tokio::spawn(async move {
            let looking = tokio::task::spawn_blocking(move || {
                let now = catalogs::now();
                let mut trust = base.map(|base| base.trust.clone()).unwrap_or_default();
                let check = &Checked { at_start: false };
                rotate_by(&places.folder, &mut trust, (check, now));
                let file = places.versions();
                let versions = Versions::load(&file).unwrap_or_else(|_| Versions::none(&file));
                let done = work(&places.shelf(), &Signed { trust: &trust, now, check }, &versions);
                crate::run::memory::release();
                done
            });
            let done = looking.await.unwrap_or_else(|error| Err((DISK, error.to_string())));
            // The agent may be ending.
            let _ = commands.send(asker.again(request, found_out(done))).await;
        });
    }

    /// Tells what became of a catalog that was brought.
    pub(super) fn took_catalog(
        &mut self,
        taken: Result<Box<Taken>, Why>,
        by: Option<&Caller>,
    ) -> Answer {
        self.takes_catalog = false;
        match taken {
            Ok(taken) => {
                let Taken { path, kept, version, digest, by: signed, counts, is_new } = *taken;
                if is_new {
                    // Until the folders are read anew.
                    self.found.kept.retain(|one| one.name != kept.name);
                    self.found.kept.push(kept.clone());
                    self.tell(CatalogChange {
                        file: path.display().to_string(),
                        version: Some(version),
                        digest: Some(digest::format(&digest)),
                        signed,
                        digests: counts.0,
                        withdrawn: counts.1,
                        ..change("received", Some(&kept.name), by)
                    });
                }
                json(&TakenAnswer { kept, version })
            }
            Err(why) => self.refuse_catalog(None, why, by),
        }
    }

    /// Tells what became of one that was taken away.
    pub(super) fn took_catalog_away(
        &mut self,
        name: &str,
        taken: Result<Option<TakenAway>, Why>,
        by: Option<&Caller>,
    ) -> Answer {
        self.takes_catalog = false;
        match taken {
            Ok(taken) => {
                self.found.kept.retain(|one| one.name != name);
                if let Some(TakenAway { path, name }) = &taken {
                    self.tell(CatalogChange {
                        file: path.display().to_string(),
                        ..change("taken-away", Some(name), by)
                    });
                }
                json(&serde_json::json!({ "taken_away": taken.is_some() }))
            }
            Err(why) => self.refuse_catalog(Some(name), why, by),
        }
    }

    fn refuse_catalog(&mut self, name: Option<&str>, why: Why, by: Option<&Caller>) -> Answer {
        let (reason, message) = why;
        self.tell(CatalogChange {
            reason: Some(reason.into()),
            message: Some(message.clone()),
            ..change("refused", name, by)
        });
        let code = if reason == DISK { 3 } else { 1 };
        Answer::Refused(Refusal { code, message: format!("refused ({reason}): {message}") })
    }
}

fn change(state: &'static str, name: Option<&str>, by: Option<&Caller>) -> CatalogChange {
    CatalogChange {
        state,
        file: String::new(),
        name: name.map(str::to_owned),
        version: None,
        digest: None,
        signed: Vec::new(),
        digests: 0,
        withdrawn: 0,
        reason: None,
        message: None,
        by: by.cloned(),
    }
}
