//! Says which catalogs somebody shall have.

use std::time::Duration;

use async_nats::{HeaderMap, header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE};
use bytes::Bytes;
use futures_util::TryStreamExt;
use tokio::time::sleep;

use super::Plant;
use crate::fleet::{
    ATTEMPTS, FleetError,
    chunks::{self, Kind},
    direct,
    listing::{Listed, Listing},
    names::{Target, WANTED, WANTED_STREAM},
    patiently,
    words::Stored,
};

impl Plant {
    /// The catalogs that somebody shall have; none if that was never said.
    ///
    /// # Errors
    /// If the servers do not say, or it cannot be understood.
    pub async fn listing(&self, target: &Target) -> Result<Option<Listing>, FleetError> {
        Ok(self.listing_with_number(target).await?.0)
    }

    async fn listing_with_number(
        &self,
        target: &Target,
    ) -> Result<(Option<Listing>, u64), FleetError> {
        let client = &self.connection.client;
        let found = direct::last(client, WANTED_STREAM, &target.catalogs_wanted()).await?;
        let number = found.as_ref().map_or(0, |found| found.sequence);
        let found = found.filter(|found| !found.is_deleted);
        let listing = found.map(|found| Listing::read(&found.bytes)).transpose();
        Ok((listing.map_err(FleetError::Broken)?, number))
    }

    /// Stores a catalog for somebody, with its signatures.
    ///
    /// # Errors
    /// If the servers do not take it.
    pub async fn store_catalog(
        &self,
        target: &Target,
        parcel: Bytes,
    ) -> Result<Stored, FleetError> {
        chunks::store(&self.context, Kind::Catalog, target.clone(), parcel).await
    }

    /// Puts catalogs, which are stored, into somebody's list.
    ///
    /// # Errors
    /// If the servers do not take it, or there are too many.
    pub async fn list_catalogs(
        &self,
        target: &Target,
        new: &[Listed],
    ) -> Result<Listing, FleetError> {
        self.change_listing(target, |listing| listing.put(new)).await
    }

    /// Takes catalogs out of somebody's list, by name.
    ///
    /// # Errors
    /// If the servers do not do it.
    pub async fn unlist_catalogs(
        &self,
        target: &Target,
        names: &[String],
    ) -> Result<Listing, FleetError> {
        let remove = |listing: &mut Listing| {
            listing.catalogs.retain(|listed| !names.contains(&listed.name));
        };
        self.change_listing(target, remove).await
    }

    /// Changes a list. What somebody else says meanwhile is not lost: then it is changed anew.
    async fn change_listing(
        &self,
        target: &Target,
        change: impl Fn(&mut Listing),
    ) -> Result<Listing, FleetError> {
        let what = "changing the list of catalogs";
        let mut attempt = 0;
        let listing = loop {
            attempt += 1;
            let (before, number) = self.listing_with_number(target).await?;
            let mut listing = before.unwrap_or_default();
            change(&mut listing);
            let bytes = Bytes::from(listing.written().map_err(FleetError::Broken)?);
            let mut headers = HeaderMap::new();
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, number.to_string());
            let say = async {
                let subject = target.catalogs_wanted();
                self.context.publish_with_headers(subject, headers, bytes).await?.await
            };
            match say.await {
                Ok(_) => break listing,
                // Somebody else was faster, or a server has gone or fallen behind.
                Err(_) if attempt < ATTEMPTS => {
                    sleep(Duration::from_millis(250) * (1 << attempt)).await;
                }
                Err(error) => return Err(FleetError::of(what)(error)),
            }
        };
        self.forget_catalogs(target, &listing).await?;
        Ok(listing)
    }

    /// Forgets the catalogs that were in somebody's lists before and are not any more.
    async fn forget_catalogs(&self, target: &Target, keep: &Listing) -> Result<(), FleetError> {
        let what = "removing old catalogs";
        let store = patiently(what, || self.context.get_key_value(WANTED)).await?;
        let history = patiently(what, || store.history(target.catalogs_key())).await?;
        let history: Vec<_> = history.try_collect().await.map_err(FleetError::of(what))?;
        let before = history.iter().filter_map(|entry| Listing::read(&entry.value).ok());
        let mut gone: Vec<_> = before.flat_map(|listing| listing.catalogs).collect();
        gone.retain(|old| !keep.catalogs.iter().any(|listed| listed.sha256 == old.sha256));
        gone.sort_by(|a, b| a.sha256.cmp(&b.sha256));
        gone.dedup_by(|a, b| a.sha256 == b.sha256);
        for old in gone {
            self.forget(Kind::Catalog, target, &old.sha256).await?;
        }
        Ok(())
    }
}
