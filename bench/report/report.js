'use strict';
// Tables that sort and filter.  Without this script they are whole, and in the order of the suite.
{
  const make = (tag, properties, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  // Spaces and hyphens that do not break are typed as plain ones.
  const flat = (text) => text.replace(/[\u00a0\u202f\s]+/g, ' ').replace(/\u2011/g, '-').trim();
  const words = (text) => flat(text).toLowerCase();
  const heading = (th) => flat(th.textContent.replace(/[↑↓]/g, ''));
  // "blur, mask" is either of them; "blur 0.1" has both words.
  const matches = (text, query) => {
    const wanted = words(query).split(',').map((part) => part.split(' ').filter(Boolean)).filter((part) => part.length);
    return !wanted.length || wanted.some((part) => part.every((word) => text.includes(word)));
  };
  const FEW_ROWS = 4, FEW_COLUMNS = 7;

  document.querySelectorAll('.scroll > table').forEach((table, number) => {
    const head = table.tHead, body = table.tBodies[0], rows = [...body.rows], plain = table.classList.contains('plain');
    const foot = table.tFoot ? [...table.tFoot.rows] : [];
    const heads = [...head.querySelectorAll('th[data-column]')], tops = [...head.querySelectorAll('th[data-from]')];
    const names = new Map(heads.map((th) => [Number(th.dataset.column), heading(th)]));
    for (const top of tops) {
      for (let i = Number(top.dataset.from); i < Number(top.dataset.to); i++) {
        names.set(i, `${heading(top)} ${names.get(i)}`);
      }
    }
    const texts = new Map(rows.map((row) => [row, words((plain ? row : row.cells[0]).textContent)]));
    table.id ||= `sorted-${number + 1}`;

    // ------------------------------------------------------------------------------------------------------- the bar
    const output = make('output', {});
    const field = (label, title) => {
      const input = make('input', { type: 'search', title, autocomplete: 'off', spellcheck: false });
      input.setAttribute('aria-controls', table.id);
      input.addEventListener('input', apply);
      input.addEventListener('keydown', (event) => {
        if (event.key === 'Escape' && input.value) { input.value = ''; event.preventDefault(); apply(); }
      });
      return [input, make('label', {}, `${label} `, input)];
    };
    const tick = (label) => {
      const input = make('input', { type: 'checkbox' });
      input.setAttribute('aria-controls', table.id);
      input.addEventListener('change', apply);
      return [input, make('label', {}, input, ` ${label}`)];
    };
    const hint = 'words that must occur; a comma between alternatives';
    const [rowField, rowLabel] = field(`Filter by ${(names.get(0) || 'row').replace(/^[A-Z]/, (c) => c.toLowerCase())}`, hint);
    const [columnField, columnLabel] = field('Filter by column', hint);
    const [controls, controlsLabel] = tick('hide controls');
    const [trusted, trustedLabel] = tick('hide untrusted figures');
    const reset = make('button', { type: 'button', hidden: true }, 'Show all');
    reset.addEventListener('click', () => {
      rowField.value = columnField.value = '';
      controls.checked = trusted.checked = false;
      apply();
      (bar.querySelector('input') || table.parentElement).focus();
    });
    const parts = [];
    if (rows.length >= FEW_ROWS) parts.push(rowLabel);
    if (!plain && names.size > FEW_COLUMNS) parts.push(columnLabel);
    if (rows.some((row) => row.classList.contains('control'))) parts.push(controlsLabel);
    if (body.querySelector('td.untrusted')) parts.push(trustedLabel);
    const bar = make('div', { className: 'filter' }, ...parts, reset, output);
    bar.setAttribute('role', 'group');
    bar.setAttribute('aria-label', 'Filter the table below');
    if (parts.length) table.parentElement.before(bar);

    // ------------------------------------------------------------------------------------------------------ filtering
    let order = '';
    function apply() {
      let shownRows = 0;
      for (const row of rows) {
        row.hidden = !matches(texts.get(row), rowField.value) || (controls.checked && row.classList.contains('control'));
        shownRows += !row.hidden;
      }
      const shown = new Set([...names].filter(([i, name]) => i === 0 || matches(words(name), columnField.value)).map(([i]) => i));
      for (const row of [...rows, ...foot]) [...row.cells].forEach((cell, i) => { cell.hidden = !shown.has(i); });
      for (const th of heads) th.hidden = !shown.has(Number(th.dataset.column));
      for (const top of tops) {
        let span = 0;
        for (let i = Number(top.dataset.from); i < Number(top.dataset.to); i++) span += shown.has(i);
        top.hidden = !span;
        if (span) top.colSpan = span;
      }
      table.classList.toggle('trusted-only', trusted.checked);
      reset.hidden = !(rowField.value || columnField.value || controls.checked || trusted.checked);
      const all = names.size - 1, some = shown.size - 1;
      const said = [`${shownRows === rows.length ? rows.length : `${shownRows} of ${rows.length}`} rows`];
      if (some !== all) said.push(`${some} of ${all} columns`);
      if (order) said.push(order);
      output.value = said.join(', ');
    }
    apply();

    // -------------------------------------------------------------------------------------------------------- sorting
    for (const th of heads) {
      const i = Number(th.dataset.column), text = Boolean(th.dataset.text);
      const button = make('button', { type: 'button' }, ...th.childNodes);
      th.append(button);
      // numbers by value; cells without one last, whichever way the others go
      const value = (row) => {
        const cell = row.cells[i], said = cell.dataset.value ?? cell.textContent.trim();
        if (text) return said;
        const hidden = trusted.checked && cell.classList.contains('untrusted');
        return said === '' || hidden || Number.isNaN(Number(said)) ? null : Number(said);
      };
      const compare = (a, b) => (text ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
      button.addEventListener('click', () => {
        const now = th.getAttribute('aria-sort');
        const next = now === 'ascending' ? 'descending' : now === 'descending' ? '' : 'ascending';
        for (const other of heads) other.removeAttribute('aria-sort');
        if (next) th.setAttribute('aria-sort', next);
        const sorted = [...rows]; // a third press gives the suite's order back
        if (next) {
          sorted.sort((a, b) => {
            const x = value(a), y = value(b);
            if (x === null || y === null) return (x === null) - (y === null);
            return next === 'ascending' ? compare(x, y) : compare(y, x);
          });
        }
        body.append(...sorted);
        table.classList.toggle('sorted', Boolean(next));
        const ends = text ? ['A to Z', 'Z to A'] : ['lowest first', 'highest first'];
        order = next ? `sorted by ${names.get(i)}, ${ends[next === 'ascending' ? 0 : 1]}` : '';
        apply();
      });
    }
  });
}
