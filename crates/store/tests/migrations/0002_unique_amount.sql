CREATE UNIQUE INDEX items_amount ON items (amount);
