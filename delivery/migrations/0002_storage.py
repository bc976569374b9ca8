"""How PostgreSQL keeps the queue: room for the moves of a letter, and a vacuum that comes in time.

All moves of a usual letter are HOT updates: they change no column that an index holds or looks at
(waits_alone, unusual), and find room for the new versions on the same page with a fillfactor of 40,
where the dead ones are pruned without a vacuum (benchmarks/claim.py --fillfactors 70 50 40). The default
autovacuum waits until a fifth of the table is dead: half a million rows in a campaign of a million,
through which index scans walk. Here it begins after 20,000 and a fiftieth.
"""

from django.db import migrations

STORAGE = {
    "fillfactor": 40,
    "autovacuum_vacuum_scale_factor": 0.02,
    "autovacuum_vacuum_threshold": 20_000,
    "autovacuum_analyze_scale_factor": 0.05,
    "autovacuum_vacuum_cost_limit": 2_000,
}


def _alter(schema_editor, change):
    if schema_editor.connection.vendor == "postgresql":
        schema_editor.execute(f"ALTER TABLE delivery_delivery {change}")


def set_storage(apps, schema_editor):
    _alter(schema_editor, f"SET ({', '.join(f'{k} = {v}' for k, v in STORAGE.items())})")


def reset_storage(apps, schema_editor):
    _alter(schema_editor, f"RESET ({', '.join(STORAGE)})")


class Migration(migrations.Migration):
    dependencies = [("delivery", "0001_initial")]

    operations = [migrations.RunPython(set_storage, reset_storage)]
