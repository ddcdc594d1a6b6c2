//! Commands about quotas.
//!
//! ```text
//!   "quota":{"weight":4,"events_per_second_max":5000}       the names of a table of the configuration
//! ```
//! What is left out is not bounded, so a name that is none is refused: nobody is unbounded by a slip of the pen.

use super::Reader;
use super::fields::{Field, Fields};
use super::plan::{Place, Plan};
use crate::wire::json::{Kind as Json, Scanner, Value};
use shards::limits::{Kind, QUOTA_MAX, Quota, WEIGHT_MAX};
use shards::refusal::{Refusal, Refused};

impl Reader<'_, '_> {
    pub(super) fn quota_get(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        Ok(Plan::QuotaGet { tenant: self.tenant(fields)? })
    }

    pub(super) fn quota_set(&mut self, fields: &Fields) -> Result<Plan, Refused> {
        let tenant = self.tenant(fields)?;
        let quota = fields.get(Field::Quota).map(|value| self.quota(fields, value).map(Box::new)).transpose()?;
        Ok(Plan::QuotaSet { tenant, quota })
    }

    fn tenant(&mut self, fields: &Fields) -> Result<Option<Place>, Refused> {
        fields.has(Field::Tenant).then(|| self.name(fields, Field::Tenant)).transpose()
    }

    /// A table; its text has been checked.
    fn quota(&mut self, fields: &Fields, value: Value) -> Result<Quota, Refused> {
        let wrong = fields.refused(Refusal::WrongType, Field::Quota);
        if value.kind != Json::Object {
            return Err(wrong);
        }
        let mut scanner = Scanner::new(self.frame, value.span.start as usize);
        scanner.expect(b'{').map_err(|_| wrong)?;
        let (mut quota, mut first, mut seen) = (Quota::default(), true, 0u32);
        while let Some(key) = scanner.key(first).map_err(|_| wrong)? {
            first = false;
            let place = self.place(key);
            let name = place.text(self.frame, &self.scratch.bytes);
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
            if kind.is_none() && name != "weight" {
                return Err(wrong);
            }
            let bit = 1 << kind.map_or(31, |kind| kind as u32);
            if seen & bit != 0 {
                return Err(fields.refused(Refusal::RepeatedField, Field::Quota));
            }
            seen |= bit;
            let value = scanner.value().map_err(|_| wrong)?;
            if value.kind == Json::Null {
                continue;
            }
            let number = self.integer(fields, Field::Quota, value)?;
            let max = if kind.is_some() { QUOTA_MAX } else { u64::from(WEIGHT_MAX) };
            if !(1..=max).contains(&number) {
                return Err(fields.refused(Refusal::OutOfRange, Field::Quota));
            }
            match kind {
                Some(kind) => quota.max[kind as usize] = Some(number),
                None => quota.weight = number as u32,
            }
        }
        Ok(quota)
    }
}
